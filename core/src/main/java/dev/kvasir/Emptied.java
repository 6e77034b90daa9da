package dev.kvasir;

/** What an exception says of a session that could not be brought back to what it held before. */
final class Emptied {
  private Emptied() {}

  /**
   * Adds it to the message of an exception of ours, and to another one as a suppressed exception.
   *
   * @param failure that the call ends with
   * @param what is empty now, at the beginning of a sentence
   */
  static void say(Throwable failure, String what) {
    String sentence =
        what
            + " is empty now: the model's sliding window has moved on, or its recurrent state has changed, and the tokens before cannot be brought back.";
    if (failure instanceof KvasirException ours) {
      ours.add(sentence);
    } else {
      failure.addSuppressed(new SessionStateException(sentence));
    }
  }
}
