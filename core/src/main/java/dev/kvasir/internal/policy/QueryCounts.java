package dev.kvasir.internal.policy;

import java.util.Arrays;

/**
 * How many moved queries could see a slot: those that were summed up since its token came. Tokens
 * come in the order of their positions, so the number is the same for all that came between two
 * sums, in all layers and heads.
 */
final class QueryCounts {
  private int[] first = new int[16]; // position of the first token of a part
  private long[] before = new long[16]; // queries that were summed up before it came
  private int parts;
  private int end; // positions below have been judged by a sum
  private long total;

  private int markedParts;
  private int markedEnd;
  private long markedTotal;

  /** Positions below this have been there in a sum. */
  int end() {
    return end;
  }

  /** Queries that were summed up. */
  long total() {
    return total;
  }

  /**
   * So many queries of the tokens before a position were summed up, over the slots of these tokens.
   */
  void add(int newEnd, long queries) {
    if (newEnd > end) {
      if (parts == first.length) {
        first = Arrays.copyOf(first, 2 * parts);
        before = Arrays.copyOf(before, 2 * parts);
      }
      first[parts] = end;
      before[parts++] = total;
      end = newEnd;
    }
    total += queries;
  }

  /** Into {@code into[0 .. end())}: {@code of} divided by the queries that could see a position. */
  void divide(float of, float[] into) {
    for (int part = 0; part < parts; part++) {
      int until = part + 1 < parts ? first[part + 1] : end;
      Arrays.fill(into, first[part], until, of / (total - before[part]));
    }
  }

  /** What {@link #takeBack} goes back to. */
  void mark() {
    markedParts = parts;
    markedEnd = end;
    markedTotal = total;
  }

  void takeBack() {
    parts = markedParts;
    end = markedEnd;
    total = markedTotal;
  }

  void clear() {
    parts = 0;
    end = 0;
    total = 0;
    mark();
  }
}
