package dev.kvasir.examples.bench;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HashSet;
import java.util.List;
import java.util.OptionalLong;
import org.junit.jupiter.api.Test;

class HarbourLogTest {
  @Test
  void isTheSameTextAtAnyLengthAndDoesNotRepeatItself() {
    var text = HarbourLog.ofLength(50_000);
    assertTrue(text.length() >= 50_000);
    assertTrue(text.startsWith(HarbourLog.ofLength(10_000).stripTrailing()));
    var lines = text.lines().filter(line -> line.length() > 40).toList();
    assertEquals(lines.size(), new HashSet<>(lines).size());
  }

  @Test
  void medianOfEvenAndOddCounts() {
    assertEquals(2, row(List.of(3.0, 1.0, 2.0)).median());
    assertEquals(2.5, row(List.of(4.0, 1.0, 2.0, 3.0)).median());
    assertEquals(1, row(List.of(4.0, 1.0)).slowest());
    assertEquals(4, row(List.of(4.0, 1.0)).fastest());
  }

  private static BenchRow row(List<Double> rates) {
    return new BenchRow(
        "kvasir",
        "pp1",
        "full",
        "CPU",
        1,
        1,
        1,
        1,
        OptionalLong.empty(),
        OptionalLong.empty(),
        rates);
  }

  @Test
  void unknownMemoryIsNull() {
    var json = BenchReport.json(List.of(row(List.of(1.0))));
    assertTrue(json.contains("\"rssBytes\" : null"), json);
    assertTrue(json.contains("\"deviceBytes\" : null"), json);
  }
}
