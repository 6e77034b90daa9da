package dev.kvasir.cache;

/** Ranges of the options, and fractions of lengths. */
final class Ranges {
  private Ranges() {}

  static void fraction(String name, double value) {
    if (!(value >= 0 && value <= 1)) {
      throw new IllegalArgumentException(name + " must be between 0 and 1: " + value);
    }
  }

  static void atLeast(String name, long value, long least) {
    if (value < least) {
      throw new IllegalArgumentException(name + " must be at least " + least + ": " + value);
    }
  }

  /**
   * A fraction of a length in tokens, rounded down. Fractions are decimal numbers to their authors:
   * 0.29 of 100 is 29, whatever the product in binary is.
   */
  static int tokens(double fraction, int length) {
    return (int) Math.floor(fraction * length + 1e-9);
  }
}
