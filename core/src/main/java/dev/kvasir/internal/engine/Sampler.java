package dev.kvasir.internal.engine;

/** Draws tokens. Used by one thread at a time. */
public interface Sampler extends AutoCloseable {
  /** Draws a token from the logits of the last decoded one, and shows it to the penalties. */
  int draw();

  /** Shows the penalties a token that was not drawn here. */
  void accept(int token);

  /** Takes the last tokens that the penalties were shown away from them again. */
  void takeBack(int count);

  /** Forgets the tokens seen, and starts the random numbers again from the seed. */
  void reset();

  @Override
  void close();
}
