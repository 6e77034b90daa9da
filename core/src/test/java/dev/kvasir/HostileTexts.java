package dev.kvasir;

import java.util.List;
import java.util.Random;
import java.util.function.Supplier;

/**
 * Texts that nobody writes, from a seed: any UTF-16, spellings of tokens, runs, parts of templates.
 */
final class HostileTexts {
  private static final String[] SPELLINGS = {
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|begin|>",
    "<|end|>",
    "<|turn|>",
    "<|im_start|>system\n",
    "<|im_end|>",
    "<|endoftext|>",
    "[INST]",
    "<<SYS>>",
    "{{ messages }}",
    "{% for %}",
    "{#",
    "%}",
    "\\n",
    "\"",
    "\u2581",
    "\u0120",
    "\uFEFF",
    "\u202E",
    "\u0085",
    "\u2028",
    "\uFFFF",
    "\uFFFD",
    "\uD83D\uDE00",
    "\uD83D",
    "\uDE00",
    "e\u0301\u0301\u0301",
    "\0",
    "\0\0",
    "\r\n",
    "\t",
    "\u00A0",
    "'ll",
    "1234567",
    "...",
    "====",
    "/\n/\n"
  };

  private final Random random;
  private final List<Supplier<String>> kinds =
      List.of(
          this::anything,
          this::spellings,
          this::run,
          this::alternation,
          this::codePoints,
          this::words,
          this::bytes);

  HostileTexts(long seed) {
    random = new Random(seed);
  }

  String next() {
    return kinds.get(random.nextInt(kinds.size())).get();
  }

  /** Mostly short, now and then long. */
  private int length() {
    int[] most = {1, 8, 8, 64, 64, 300, 300, 3_000, 20_000};
    return random.nextInt(most[random.nextInt(most.length)] + 1);
  }

  private String anything() {
    char[] chars = new char[length()];
    for (int i = 0; i < chars.length; i++) {
      chars[i] = (char) random.nextInt(1 << 16);
    }
    return new String(chars);
  }

  private String codePoints() {
    StringBuilder text = new StringBuilder();
    for (int i = length(); i > 0; i--) {
      text.appendCodePoint(random.nextInt(Character.MAX_CODE_POINT + 1));
    }
    return text.toString();
  }

  private String spellings() {
    StringBuilder text = new StringBuilder();
    for (int i = length() / 4; i >= 0; i--) {
      text.append(spelling());
      if (random.nextInt(4) == 0) {
        text.append((char) random.nextInt(128));
      }
    }
    return text.toString();
  }

  private String spelling() {
    return SPELLINGS[random.nextInt(SPELLINGS.length)];
  }

  private String run() {
    return character().repeat(length());
  }

  private String alternation() {
    return (character() + character()).repeat(length());
  }

  private String character() {
    return random.nextInt(3) == 0
        ? spelling()
        : random.nextBoolean()
            ? Character.toString(random.nextInt(128))
            : Character.toString(random.nextInt(Character.MAX_CODE_POINT + 1));
  }

  private String words() {
    StringBuilder text = new StringBuilder();
    for (int i = length() / 4; i >= 0; i--) {
      for (int letter = random.nextInt(9); letter >= 0; letter--) {
        text.append((char) ('a' + random.nextInt(26)));
      }
      text.append(" ,.\n".charAt(random.nextInt(4)));
    }
    return text.toString();
  }

  private String bytes() {
    char[] chars = new char[length()];
    for (int i = 0; i < chars.length; i++) {
      chars[i] = (char) random.nextInt(256);
    }
    return new String(chars);
  }
}
