package dev.kvasir.examples.profile;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

class HeadMapTest {
  private static CacheReport report(List<HeadUse> heads) {
    return new CacheReport(100, true, List.of(), heads, 0, 0);
  }

  @Test
  void layersGoRightAndHeadsDown() {
    var report =
        report(
            List.of(
                new HeadUse(0, 0, "special", 4, 100, 256),
                new HeadUse(0, 1, "full", 100, 100, 256),
                new HeadUse(1, 0, "frequent 5% + local 20%", 25, 100, 256),
                new HeadUse(1, 1, "local 32", 32, 100, 256)));
    assertEquals(
        """
        layer      0
        KV head 0  Sb
        KV head 1  #l
                   kept, in tenths
        KV head 0  02
        KV head 1  #3
        S special tokens   l local   b frequent and local   # everything
        """,
        new HeadMap(report, 80, false).render());
  }

  @Test
  void lettersOfThePapersCandidates() {
    assertEquals('P', HeadMap.letter("punctuation"));
    assertEquals('F', HeadMap.letter("frequent"));
    assertEquals('L', HeadMap.letter("local"));
    assertEquals('f', HeadMap.letter("frequent 30%"));
    assertEquals('?', HeadMap.letter("undecided"));
  }

  @Test
  void wideModelsAreBrokenIntoPartsAndLayersWithoutHeadsAreLeftOut() {
    var heads = new ArrayList<HeadUse>();
    for (int layer = 0; layer < 60; layer += 2) { // every second layer has no cache of its own
      heads.add(new HeadUse(layer, 0, "full", 100, 100, 256));
    }
    var lines = new HeadMap(report(heads), 31, false).render().lines().toList();
    assertEquals("layer      0    10   20   30", lines.get(0));
    assertEquals("KV head 0  " + "#".repeat(20), lines.get(1));
    assertEquals("layer      40   50", lines.get(4));
    assertEquals("KV head 0  " + "#".repeat(10), lines.get(5));
  }

  @Test
  void coloursOnlyOnDemand() {
    var report = report(List.of(new HeadUse(0, 0, "full", 100, 100, 256)));
    assertTrue(new HeadMap(report, 80, true).render().contains("\033["));
    assertFalse(new HeadMap(report, 80, false).render().contains("\033["));
  }
}
