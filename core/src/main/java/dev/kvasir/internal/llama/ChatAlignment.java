package dev.kvasir.internal.llama;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Finds the parts of a blind rendering again in one that saw the messages: templates strip white
 * space from contents, and what they leave is to be prompted. The template's parts must be exactly
 * those that it wrote without having seen a content, and contents are known but for the white space
 * around them, so that no content can pass for a part of the template.
 */
final class ChatAlignment {
  private ChatAlignment() {}

  /** The rendered text in parts; empty if it is made up in another way. */
  static Optional<ChatText> align(ChatText blind, String rendered) {
    List<ChatText.Part> parts = new ArrayList<>();
    int at = 0;
    for (int i = 0; i < blind.parts().size(); i++) {
      ChatText.Part part = blind.parts().get(i);
      int end;
      if (part.ofTemplate()) {
        end = rendered.startsWith(part.text(), at) ? at + part.text().length() : -1;
      } else {
        String next = "";
        boolean last = i + 1 == blind.parts().size();
        if (!last && blind.parts().get(i + 1).ofTemplate()) {
          next = blind.parts().get(i + 1).text();
        }
        end = endOf(part.text(), rendered, at, next, last);
      }
      if (end < 0) {
        return Optional.empty();
      }
      parts.add(new ChatText.Part(rendered.substring(at, end), part.message()));
      at = end;
    }
    return at == rendered.length() ? Optional.of(new ChatText(parts)) : Optional.empty();
  }

  /** Where a content ends that begins at a position, with some of the white space around it. */
  private static int endOf(String content, String rendered, int at, String next, boolean last) {
    int first = 0;
    while (first < content.length() && isSpace(content.charAt(first))) {
      first++;
    }
    if (first == content.length()) { // nothing but white space
      return follows(rendered, at + content.length(), next, last)
              && rendered.startsWith(content, at)
          ? at + content.length()
          : follows(rendered, at, next, last) ? at : -1;
    }
    int end = content.length();
    while (isSpace(content.charAt(end - 1))) {
      end--;
    }
    int leading = 0;
    while (at + leading < rendered.length() && isSpace(rendered.charAt(at + leading))) {
      leading++;
    }
    if (leading > first || !rendered.startsWith(content.substring(first - leading, end), at)) {
      return -1;
    }
    int core = at + leading + end - first;
    for (int trailing = content.length() - end; trailing >= 0; trailing--) {
      if (follows(rendered, core + trailing, next, last)
          && rendered.startsWith(content.substring(end, end + trailing), core)) {
        return core + trailing;
      }
    }
    return -1;
  }

  private static boolean follows(String rendered, int at, String next, boolean last) {
    return last ? at == rendered.length() : rendered.startsWith(next, at);
  }

  /** White space as templates strip it: C's. */
  static boolean isSpace(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
  }
}
