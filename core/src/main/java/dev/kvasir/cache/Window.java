package dev.kvasir.cache;

/**
 * How many of the most recent tokens are local: a number of tokens, or a fraction of the prompt's
 * length. One of the two is 0; both are for a policy without local tokens.
 *
 * @param tokens a number of tokens
 * @param ofPrompt a fraction of the prompt's length, 0 to 1
 */
public record Window(int tokens, double ofPrompt) {
  /** No local tokens. */
  public static final Window NONE = new Window(0, 0);

  /** Checks the ranges. */
  public Window {
    Ranges.atLeast("Window.tokens", tokens, 0);
    Ranges.fraction("Window.ofPrompt", ofPrompt);
    if (tokens > 0 && ofPrompt > 0) {
      throw new IllegalArgumentException(
          "Window is either tokens or a fraction of the prompt, not "
              + tokens
              + " and "
              + ofPrompt);
    }
  }

  /** So many tokens. */
  public static Window ofTokens(int tokens) {
    return new Window(tokens, 0);
  }

  /** This fraction of the prompt. */
  public static Window ofPrompt(double fraction) {
    return new Window(0, fraction);
  }

  /** The window in tokens for a prompt of {@code promptTokens}: a fraction is rounded down. */
  public int in(int promptTokens) {
    return tokens > 0 ? tokens : Ranges.tokens(ofPrompt, promptTokens);
  }
}
