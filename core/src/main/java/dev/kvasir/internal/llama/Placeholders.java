package dev.kvasir.internal.llama;

import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;

/**
 * What stands in a rendering in place of the messages' contents: digits that nobody can guess, so
 * that a template may write them in capitals, escape them or put them into JSON. Around them are
 * more digits, of which it may cut some off.
 */
final class Placeholders {
  private static final int DIGITS = 24;
  private static final int INDEX_DIGITS = 6;
  private static final int MARGIN_DIGITS = 8;
  private static final SecureRandom RANDOM = new SecureRandom();

  private final String left = digits(MARGIN_DIGITS);
  private final String prefix = digits(DIGITS);
  private final String right = digits(MARGIN_DIGITS);

  private static String digits(int count) {
    StringBuilder digits = new StringBuilder();
    for (int i = 0; i < count; i++) {
      digits.append(RANDOM.nextInt(10));
    }
    return digits.toString();
  }

  /**
   * The messages with placeholders for contents. An empty content stays empty: templates ask
   * whether there is one.
   */
  List<ChatMessage> hide(List<ChatMessage> messages) {
    List<ChatMessage> hidden = new ArrayList<>();
    for (ChatMessage message : messages) {
      String content = message.content().isEmpty() ? "" : of(hidden.size());
      hidden.add(new ChatMessage(message.role(), content));
    }
    return hidden;
  }

  private String of(int message) {
    String index = Integer.toString(message);
    return left + prefix + "0".repeat(INDEX_DIGITS - index.length()) + index + right;
  }

  /** A rendering with the messages' contents, as they are, where their placeholders are. */
  ChatText show(String rendered, List<ChatMessage> messages) {
    List<ChatText.Part> parts = new ArrayList<>();
    int from = 0;
    for (int at = rendered.indexOf(prefix); at >= 0; at = rendered.indexOf(prefix, from)) {
      int end = Math.min(rendered.length(), at + DIGITS + INDEX_DIGITS);
      int message = indexOf(rendered.substring(at + DIGITS, end), messages.size());
      int begin = at;
      for (int i = MARGIN_DIGITS - 1; i >= 0 && begin > from; i--, begin--) {
        if (rendered.charAt(begin - 1) != left.charAt(i)) {
          break;
        }
      }
      parts.add(new ChatText.Part(rendered.substring(from, begin), ChatText.TEMPLATE));
      if (message >= 0) {
        for (int i = 0; i < MARGIN_DIGITS && end < rendered.length(); i++, end++) {
          if (rendered.charAt(end) != right.charAt(i)) {
            break;
          }
        }
        parts.add(new ChatText.Part(messages.get(message).content(), message));
      } else {
        end = at + DIGITS; // cut off by the template: no message, and no text either
      }
      from = end;
    }
    parts.add(new ChatText.Part(rendered.substring(from), ChatText.TEMPLATE));
    return new ChatText(parts);
  }

  private static int indexOf(String digits, int messages) {
    if (digits.length() != INDEX_DIGITS || !digits.chars().allMatch(c -> c >= '0' && c <= '9')) {
      return -1;
    }
    int index = Integer.parseInt(digits);
    return index < messages ? index : -1;
  }
}
