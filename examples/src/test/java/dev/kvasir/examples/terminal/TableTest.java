package dev.kvasir.examples.terminal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import org.junit.jupiter.api.Test;

class TableTest {
  private final Table table = new Table("name", "n").row("a", 1).row("longer", 1000);

  @Test
  void numbersStandOnTheRight() {
    assertEquals(
        """
        name       n
        a          1
        longer  1000
        """,
        table.toText());
  }

  @Test
  void markdown() {
    assertEquals(
        """
        | name   |    n |
        | ------ | ---: |
        | a      |    1 |
        | longer | 1000 |
        """,
        table.toMarkdown());
  }

  @Test
  void everyColumnNeedsACell() {
    assertThrows(IllegalArgumentException.class, () -> table.row("a"));
  }

  @Test
  void bytesHaveBinaryUnits() {
    assertEquals("0 B", Units.bytes(0));
    assertEquals("1023 B", Units.bytes(1023));
    assertEquals("1.0 KiB", Units.bytes(1024));
    assertEquals("93.8 MiB", Units.bytes(98_362_432));
    assertEquals("2048.0 TiB", Units.bytes(1L << 51));
  }
}
