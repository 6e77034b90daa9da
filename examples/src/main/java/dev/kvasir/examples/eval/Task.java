package dev.kvasir.examples.eval;

/** What a compressed cache is tried at. */
enum Task {
  /** The text goes on. */
  TEXT(64),
  /** Facts of the prompt are asked for. */
  CODES(0),
  /** The model goes on by itself. */
  GENERATE(160);

  private final int tokens;

  Task(int tokens) {
    this.tokens = tokens;
  }

  /** Tokens after the prompt, unless others are asked for; 0: the task has its own. */
  int tokens() {
    return tokens;
  }
}
