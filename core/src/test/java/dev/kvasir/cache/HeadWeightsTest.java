package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ProfileException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class HeadWeightsTest {
  @TempDir private Path directory;

  private Path file(String text) throws IOException {
    return Files.writeString(directory.resolve("weights.json"), text);
  }

  @Test
  void areReadByLayerAndQueryHead() throws IOException {
    var weights =
        HeadWeights.load(
            file("{\"model\": \"m\", \"what\": \"w\", \"trace\": [[9.5, 1], [], [2.5e-3, 4]]}"));
    assertEquals(3, weights.layers());
    assertEquals(List.of(2, 0, 2), List.of(0, 1, 2).stream().map(weights::queryHeads).toList());
    assertEquals(9.5f, weights.trace(0, 0));
    assertEquals(2.5e-3f, weights.trace(2, 0));
    assertEquals(HeadWeights.of(new float[][] {{9.5f, 1}, {}, {2.5e-3f, 4}}), weights);
    assertNotEquals(HeadWeights.of(new float[][] {{9.5f, 1}, {2.5e-3f, 4}}), weights);
  }

  @Test
  void areCopied() {
    float[][] table = {{1, 2}};
    var weights = HeadWeights.of(table);
    table[0][1] = 5;
    assertEquals(2, weights.trace(0, 1));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "{",
        "[]",
        "{}",
        "{\"trace\": 3}",
        "{\"trace\": []}",
        "{\"trace\": [[]]}",
        "{\"trace\": [1, 2]}",
        "{\"trace\": [[1, 2], 3]}",
        "{\"trace\": [[1, \"2\"]]}",
        "{\"trace\": [[1, null]]}",
        "{\"trace\": [[1, 0]]}",
        "{\"trace\": [[1, -2]]}",
        "{\"trace\": [[1, 1e99]]}",
        "{\"trace\": [[1, 1e-99]]}",
        "{\"trace\": [[1, NaN]]}",
        "{\"trace\": [[1]]} more",
        "{\"trace\": [[1]], \"trace\": [[2]]}"
      })
  void aDamagedFileIsRefusedByItsName(String text) throws IOException {
    Path file = file(text);
    var e = assertThrows(ProfileException.class, () -> HeadWeights.load(file));
    assertTrue(e.getMessage().contains("weights.json"), e.getMessage());
  }

  @Test
  void aFileThatIsNotThereIsRefusedByItsName() {
    Path file = directory.resolve("none.json");
    var e = assertThrows(ProfileException.class, () -> HeadWeights.load(file));
    assertEquals("the table of head weights " + file + " does not exist", e.getMessage());
    assertThrows(ProfileException.class, () -> HeadWeights.load(directory));
  }
}
