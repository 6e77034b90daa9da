package dev.kvasir.cache;

/** What FastGen's choice of policies aims at. */
public sealed interface Target {

  /**
   * Each head's cheapest candidate that recovers at least {@code recovery} of its attention (T in
   * Eq. 1 of arXiv 2310.01801). 1 keeps everything.
   */
  static Target recovery(double recovery) {
    return new Recovery(recovery);
  }

  /**
   * Keys and values of the prompt in at most this fraction of the bytes that the full cache takes
   * for the prompt.
   *
   * @see BudgetBytes
   */
  static Target budgetFraction(double fraction) {
    return new BudgetFraction(fraction);
  }

  /** Keys and values of the prompt in at most so many bytes. */
  static Target budgetBytes(long bytes) {
    return new BudgetBytes(bytes);
  }

  /**
   * See {@link Target#recovery}.
   *
   * @param recovery 0 to 1
   */
  record Recovery(double recovery) implements Target {
    /** Checks the range. */
    public Recovery {
      Ranges.fraction("Target.recovery", recovery);
    }
  }

  /**
   * See {@link Target#budgetFraction}.
   *
   * @param fraction 0 to 1
   */
  record BudgetFraction(double fraction) implements Target {
    /** Checks the range. */
    public BudgetFraction {
      Ranges.fraction("Target.budgetFraction", fraction);
    }
  }

  /**
   * See {@link Target#budgetBytes}. The budget is kept when the prompt has been compressed; from
   * there on the cache grows as the chosen policies say. A budget below what the cheapest
   * candidates need (special tokens and the grace period) is exceeded by that rest.
   *
   * @param bytes 0 or more
   */
  record BudgetBytes(long bytes) implements Target {
    /** Checks the range. */
    public BudgetBytes {
      Ranges.atLeast("Target.budgetBytes", bytes, 0);
    }
  }
}
