package dev.kvasir;

/**
 * Hears how far a prefill has come, on the thread that runs the session, between micro-batches. The
 * session must not be used from it.
 */
@FunctionalInterface
public interface PrefillListener {
  /**
   * Called once before the first micro-batch and after each.
   *
   * @param done tokens of the prompt that are decoded
   * @param total tokens of the prompt
   */
  void prefilled(int done, int total);
}
