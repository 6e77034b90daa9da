package dev.kvasir.internal.text;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Seeds;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

class StopMatcherTest {
  @Test
  void textThatMayBeAStopIsHeldBack() {
    StopMatcher matcher = new StopMatcher(List.of("END"));
    assertEquals("abc ", append(matcher, "abc E"));
    assertEquals("", append(matcher, "N"));
    assertEquals("ENx", append(matcher, "x"));
    assertFalse(matcher.stopped());
    assertEquals("yz", append(matcher, "yzEN"));
    assertEquals("", append(matcher, "D and more"));
    assertTrue(matcher.stopped());
    assertEquals("", append(matcher, "ignored"));
  }

  @Test
  void theEarliestStopCounts() {
    StopMatcher matcher = new StopMatcher(List.of("late", "la"));
    assertEquals("x", append(matcher, "xlate"));
    assertTrue(matcher.stopped());
  }

  @Test
  void whatIsHeldComesAtTheEnd() {
    StopMatcher matcher = new StopMatcher(List.of("aab"));
    assertEquals("a", append(matcher, "aaa"));
    StringBuilder rest = new StringBuilder();
    matcher.finish(rest);
    assertEquals("aa", rest.toString());
  }

  @Test
  void agreesWithSearchingTheWholeText() {
    long seed = Seeds.of(StopMatcherTest.class);
    Random random = new Random(seed);
    for (int round = 0; round < 2000; round++) {
      List<String> stops = List.of(word(random, 3), word(random, 4));
      String text = word(random, 40);
      StopMatcher matcher = new StopMatcher(stops);
      StringBuilder out = new StringBuilder();
      for (int at = 0; at < text.length(); ) {
        int end = Math.min(text.length(), at + 1 + random.nextInt(4));
        matcher.append(text.substring(at, end), out);
        at = end;
      }
      matcher.finish(out);
      // The stop that is complete first ends the text, at its beginning.
      int first = Integer.MAX_VALUE;
      int cut = text.length();
      for (String stop : stops) {
        int at = text.indexOf(stop);
        if (at >= 0) {
          first = Math.min(first, at + stop.length());
          cut = Math.min(cut, at);
        }
      }
      assertEquals(
          first != Integer.MAX_VALUE,
          matcher.stopped(),
          "seed " + seed + " " + stops + " in " + text);
      if (!matcher.stopped()) {
        assertEquals(text, out.toString(), "seed " + seed);
      } else {
        assertTrue(text.startsWith(out.toString()), "seed " + seed);
        assertTrue(
            stops.stream().anyMatch(stop -> text.startsWith(stop, out.length())), "seed " + seed);
        assertTrue(out.length() >= cut, "seed " + seed);
        assertTrue(stops.stream().noneMatch(stop -> out.indexOf(stop) >= 0), "seed " + seed);
      }
    }
  }

  private static String word(Random random, int length) {
    StringBuilder word = new StringBuilder();
    for (int i = 0; i < length; i++) {
      word.append((char) ('a' + random.nextInt(2)));
    }
    return word.toString();
  }

  private static String append(StopMatcher matcher, String text) {
    StringBuilder out = new StringBuilder();
    matcher.append(text, out);
    return out.toString();
  }
}
