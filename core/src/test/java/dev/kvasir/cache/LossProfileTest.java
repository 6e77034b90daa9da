package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.ProfileException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class LossProfileTest {
  private static final int ONE = HeadLosses.binOf(1);

  /** Two layers of one head: 84 and 34 bytes a slot, 100 and 50 with the tables. */
  private static LossProfile profile() {
    return new LossProfile(
        20,
        0.5,
        4000,
        200,
        List.of(new Profile.Layer(0, 1, 2, 8, 8, 84), new Profile.Layer(3, 1, 2, 8, 8, 34)),
        List.of(
            new HeadLosses(0, 0, 2, ONE - 1, new int[] {3, 4, 0, 1}),
            new HeadLosses(3, 0, 1, ONE, new int[] {6, 0, 0, 2})));
  }

  @Test
  void binsAreEighthsOfAnOctave() {
    assertEquals(ONE, HeadLosses.binOf(1.124f));
    assertEquals(ONE + 1, HeadLosses.binOf(1.125f));
    assertEquals(ONE + 8, HeadLosses.binOf(2));
    assertEquals(0, HeadLosses.binOf(0));
    assertEquals(0, HeadLosses.binOf(-1));
    assertEquals(HeadLosses.binOf(Float.POSITIVE_INFINITY), HeadLosses.binOf(Float.NaN));
    assertTrue(HeadLosses.binOf(Float.MAX_VALUE) < HeadLosses.binOf(Float.POSITIVE_INFINITY));
    assertEquals(1.125f, HeadLosses.leastOf(ONE + 1));
  }

  @Test
  void saysWhatAnotherBudgetKeepsAndLoses() {
    var profile = profile();
    // 250 bytes stay; by bin from above: 100 (ONE + 3), 100 (ONE + 2), 700 (ONE), 300 (ONE - 1)
    assertEquals(List.of(10, 9), profile.slotsAt(0.5));
    assertEquals(0, profile.lossAt(0.5));
    assertEquals(1450, profile.bytesAt(0.5));
    assertEquals(1450, profile.bytesAt(1));
    // 450 bytes: all above ONE
    assertEquals(List.of(3, 3), profile.slotsAt(650 / 4000.0));
    assertEquals(450, profile.bytesAt(650 / 4000.0));
    double middle = (1 + 1.125) / 2;
    double below = (0.9375 + 1) / 2;
    assertEquals(700 * middle + 300 * below, profile.lossAt(650 / 4000.0), 1e-9);
    // half of ONE's bytes more
    assertEquals(List.of(5, 6), profile.slotsAt(1000 / 4000.0));
    assertEquals(350 * middle + 300 * below, profile.lossAt(1000 / 4000.0), 1e-9);
    // what stays is more than nothing
    assertEquals(List.of(2, 1), profile.slotsAt(0));
    assertEquals(250, profile.bytesAt(0));
    assertThrows(IllegalArgumentException.class, () -> profile.bytesAt(1.5));
  }

  @Test
  void aSavedProfileIsTheSame(@TempDir Path directory) throws IOException {
    var profile = profile();
    assertEquals(profile, LossProfile.fromJson(profile.toJson()));
    Path file = directory.resolve("losses.json");
    profile.save(file);
    assertEquals(profile, LossProfile.load(file));
    Files.writeString(file, Files.readString(file).substring(0, 80));
    var e = assertThrows(ProfileException.class, () -> LossProfile.load(file));
    assertTrue(e.getMessage().contains(file.toString()), e.getMessage());
    Path none = directory.resolve("none.json");
    assertThrows(ProfileException.class, () -> LossProfile.load(none));
  }

  /** One change to the JSON, after which it is no profile. */
  record Damage(String name, Consumer<ObjectNode> change) {
    @Override
    public String toString() {
      return name;
    }
  }

  private static ObjectNode head(ObjectNode root) {
    return (ObjectNode) root.get("heads").get(1);
  }

  private static ObjectNode layer(ObjectNode root) {
    return (ObjectNode) root.get("model").get("layers").get(0);
  }

  static Stream<Damage> damages() {
    return Stream.of(
        new Damage("another format", root -> root.put("format", "kvasir-profile")),
        new Damage("another version", root -> root.put("version", 2)),
        new Damage("no tokens", root -> root.remove("tokens")),
        new Damage("negative tokens", root -> root.put("tokens", -4)),
        new Damage("a budget of two", root -> root.put("budget", 2)),
        new Damage("negative bytes", root -> root.put("fullBytes", -1)),
        new Damage("bytes as a text", root -> root.put("newBytes", "1")),
        new Damage("no model", root -> root.remove("model")),
        new Damage("too many heads", root -> layer(root).put("kvHeads", 2_000_000_000)),
        new Damage("negative slot", root -> layer(root).put("slotBytes", -1)),
        new Damage("no heads", root -> root.putArray("heads")),
        new Damage("another layer", root -> head(root).put("layer", 1)),
        new Damage("negative staying", root -> head(root).put("staying", -1)),
        new Damage("no such bin", root -> head(root).put("firstBin", 2047)),
        new Damage("negative bin", root -> head(root).put("firstBin", -1)),
        new Damage("a fraction of a slot", root -> slots(root).set(0, 0.5)),
        new Damage("negative slots", root -> slots(root).set(0, -1)),
        new Damage("too many slots", root -> slots(root).set(0, Integer.MAX_VALUE)));
  }

  private static ArrayNode slots(ObjectNode root) {
    return (ArrayNode) head(root).get("slots");
  }

  @ParameterizedTest
  @MethodSource("damages")
  void aDamagedProfileIsRefused(Damage damage) throws IOException {
    var root = (ObjectNode) new ObjectMapper().readTree(profile().toJson());
    damage.change.accept(root);
    assertThrows(ProfileException.class, () -> LossProfile.fromJson(root.toString()));
  }
}
