package dev.kvasir.internal.text;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import dev.kvasir.Seeds;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;

class Utf8AssemblerTest {
  private static final String TEXT =
      "a\u00e9\u20ac\ud83d\ude00z \ud83c\uddf3\ud83c\uddf4 \u65e5\u672c";

  @Test
  void anyPortionsGiveWholeCodePoints() {
    long seed = Seeds.of(Utf8AssemblerTest.class);
    Random random = new Random(seed);
    byte[] bytes = TEXT.getBytes(StandardCharsets.UTF_8);
    for (int round = 0; round < 200; round++) {
      Utf8Assembler assembler = new Utf8Assembler();
      StringBuilder all = new StringBuilder();
      for (int at = 0; at < bytes.length; ) {
        int end = Math.min(bytes.length, at + 1 + random.nextInt(3));
        StringBuilder piece = new StringBuilder();
        assembler.append(Arrays.copyOfRange(bytes, at, end), piece);
        assertFalse(
            !piece.isEmpty() && Character.isHighSurrogate(piece.charAt(piece.length() - 1)),
            "seed " + seed);
        assertFalse(piece.indexOf("\uFFFD") >= 0, "seed " + seed);
        all.append(piece);
        at = end;
      }
      assembler.finish(all);
      assertEquals(TEXT, all.toString(), "seed " + seed);
    }
  }

  @Test
  void anUnfinishedCodePointBecomesAReplacementAtTheEnd() {
    Utf8Assembler assembler = new Utf8Assembler();
    StringBuilder text = new StringBuilder();
    assembler.append(new byte[] {'a', (byte) 0xE2, (byte) 0x82}, text);
    assertEquals("a", text.toString());
    assembler.finish(text);
    assertEquals("a\uFFFD", text.toString());
    assembler.finish(text);
    assertEquals("a\uFFFD", text.toString());
  }

  @Test
  void bytesThatAreNoUtf8DoNotBlockWhatFollows() {
    Utf8Assembler assembler = new Utf8Assembler();
    StringBuilder text = new StringBuilder();
    assembler.append(new byte[] {(byte) 0xFF, 'a', (byte) 0x80, 'b'}, text);
    assembler.append(new byte[] {(byte) 0xC3}, text);
    assembler.append(new byte[] {'c'}, text);
    assertEquals("\uFFFDa\uFFFDb\uFFFDc", text.toString());
  }
}
