package dev.kvasir;

import java.nio.FloatBuffer;

/** Receives the logits of the tokens of a batch, one token after the other. */
@FunctionalInterface
public interface LogitsConsumer {
  /**
   * Called in the order of the tokens.
   *
   * @param index of the token in the array that was evaluated
   * @param logits what the model expects after that token, one per vocabulary entry; read-only and
   *     valid only during the call
   */
  void accept(int index, FloatBuffer logits);
}
