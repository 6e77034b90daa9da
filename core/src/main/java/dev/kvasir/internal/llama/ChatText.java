package dev.kvasir.internal.llama;

import java.util.ArrayList;
import java.util.List;

/**
 * A rendered conversation, cut where the template's own words and the messages' contents meet.
 *
 * @param parts in their order
 */
record ChatText(List<Part> parts) {
  /** Stands for the template in place of a message. */
  static final int TEMPLATE = -1;

  /**
   * A piece of one origin.
   *
   * @param message the index of the message that it is from, or {@link #TEMPLATE}
   */
  record Part(String text, int message) {
    boolean ofTemplate() {
      return message == TEMPLATE;
    }
  }

  ChatText {
    parts = parts.stream().filter(part -> !part.text().isEmpty()).toList();
  }

  /** The whole text. */
  String text() {
    StringBuilder all = new StringBuilder();
    for (Part part : parts) {
      all.append(part.text());
    }
    return all.toString();
  }

  /** The parts of the template alone. */
  List<String> frame() {
    List<String> frame = new ArrayList<>();
    for (Part part : parts) {
      if (part.ofTemplate()) {
        frame.add(part.text());
      }
    }
    return frame;
  }

  /** Where the last piece of a message is among the parts before one, or -1. */
  int lastOf(int message, int before) {
    for (int i = before - 1; i >= 0; i--) {
      if (parts.get(i).message() == message) {
        return i;
      }
    }
    return -1;
  }

  /** The parts from one on. */
  ChatText from(int part) {
    return new ChatText(parts.subList(part, parts.size()));
  }
}
