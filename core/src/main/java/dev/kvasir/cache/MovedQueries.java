package dev.kvasir.cache;

/**
 * Which of a prompt's queries {@link Foresight} asks, and when: they are put behind everything that
 * was read, as if they came after it.
 *
 * @param reading after each micro-batch of the prompt its queries are asked over what is there so
 *     far, and forgotten; else all are asked at once when the prompt was read, and kept until then
 * @param stride every so-manieth query is asked, 1, 2, 4 or 8; 1 while reading
 */
public record MovedQueries(boolean reading, int stride) {

  /** Checks the range. */
  public MovedQueries {
    if (stride != 1 && stride != 2 && stride != 4 && stride != 8) {
      throw new IllegalArgumentException("MovedQueries.stride must be 1, 2, 4 or 8: " + stride);
    }
    if (reading && stride != 1) {
      throw new IllegalArgumentException("MovedQueries.stride must be 1 while reading: " + stride);
    }
  }

  /**
   * Every query, over what is there after its micro-batch: half the work, and memory for the
   * queries of one micro-batch only.
   */
  public static MovedQueries whileReading() {
    return new MovedQueries(true, 1);
  }

  /**
   * Every {@code stride}-th query, over the whole prompt. What the others would have asked is taken
   * from the neighbours.
   *
   * @param stride 1, 2, 4 or 8
   */
  public static MovedQueries afterPrompt(int stride) {
    return new MovedQueries(false, stride);
  }

  /**
   * What {@link #toString} has written: {@code u}, {@code c}, {@code c/2}, {@code c/4} or {@code
   * c/8}.
   *
   * @throws IllegalArgumentException if it is none of these
   */
  public static MovedQueries parse(String text) {
    return switch (text) {
      case "u" -> whileReading();
      case "c" -> afterPrompt(1);
      case "c/2" -> afterPrompt(2);
      case "c/4" -> afterPrompt(4);
      case "c/8" -> afterPrompt(8);
      default ->
          throw new IllegalArgumentException(
              "MovedQueries are u, c, c/2, c/4 or c/8, and not \"" + text + "\"");
    };
  }

  /** {@code u} while reading, {@code c} after the prompt, {@code c/4} every fourth of them. */
  @Override
  public String toString() {
    return reading ? "u" : stride == 1 ? "c" : "c/" + stride;
  }
}
