package dev.kvasir.examples;

/** Text for tests. */
final class Texts {
  private Texts() {}

  /** A story of so many characters, whole sentences. */
  static String harbour(int characters) {
    var text = new StringBuilder();
    for (int i = 1; text.length() < characters; i++) {
      text.append(
          "Ship %d came in at dawn with %d barrels of %s, and the clerk asked %d crowns for the berth. "
              .formatted(
                  i,
                  17 * i % 101,
                  i % 3 == 0 ? "oil" : i % 3 == 1 ? "herring" : "salt",
                  5 + 7 * i % 13));
    }
    return text.toString();
  }
}
