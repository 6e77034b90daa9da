package dev.kvasir.cache;

import java.util.Locale;

/** The kinds of tokens that FastGen's policies are made of. */
public enum Kind {
  /** Control tokens, the chat template's marker sequences, and the first positions (sinks). */
  SPECIAL,
  /** Tokens made of punctuation and symbols only. */
  PUNCTUATION,
  /** The most attended of the tokens that are not kept otherwise. */
  FREQUENT,
  /** The most recent tokens, by position. */
  LOCAL;

  /** The name in tables and in JSON: lower case. */
  public String label() {
    return name().toLowerCase(Locale.ROOT);
  }
}
