package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.KvasirException;
import dev.kvasir.ProfileException;
import dev.kvasir.Seeds;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The JSON of profiles: nothing is lost, and nothing that is not a whole profile is taken for one.
 */
class ProfileJsonTest {
  private final long seed = Seeds.of(ProfileJsonTest.class);
  private final Random random = new Random(seed);
  private final ObjectMapper mapper = new ObjectMapper();

  private Profile profile() {
    return ChoiceTest.randomProfile(random, Candidates.LATTICE, 2, 2, 5)
        .withTarget(Target.recovery(0.7));
  }

  @Test
  void roundTripLosesNothing() {
    for (var target :
        List.of(Target.recovery(0.9), Target.budgetFraction(0.25), Target.budgetBytes(1L << 40))) {
      for (var kind : Candidates.values()) {
        var profile = ChoiceTest.randomProfile(random, kind, 3, 2, 7).withTarget(target);
        var again = Profile.fromJson(profile.toJson());
        assertEquals(profile, again, "seed " + seed);
        assertEquals(profile.hashCode(), again.hashCode());
        assertEquals(target, again.target());
        assertEquals(profile.toJson(), again.toJson());
        assertEquals(again, again.withTarget(target), "the same figures, the same choice");
      }
    }
  }

  @Test
  void scriptsFindTheAgreedFields() throws Exception {
    var profile = profile();
    var root = mapper.readTree(profile.toJson());
    assertEquals(100, root.get("tokens").asInt());
    assertEquals(0.7, root.get("target").get("recovery").asDouble());
    assertEquals(4, root.get("heads").size());
    for (int h = 0; h < 4; h++) {
      var node = root.get("heads").get(h);
      var head = profile.heads().get(h);
      assertEquals(h / 2, node.get("layer").asInt());
      assertEquals(h % 2, node.get("kvHead").asInt());
      assertEquals(profile.chosen(head).name(), node.get("policy").asText());
      assertEquals(head.kept(), node.get("kept").asInt());
      assertEquals(
          head.paperRecovery().get("special"), node.get("recovery").get("special").floatValue());
      assertEquals(1.0, node.get("recovery").get("full").asDouble());
    }
  }

  @Test
  void filesAreReplacedAsAWhole(@TempDir Path directory) throws Exception {
    var file = directory.resolve("profile.json");
    Files.writeString(file, "something longer than nothing");
    var profile = profile();
    profile.save(file);
    assertEquals(profile, Profile.load(file));
    try (var entries = Files.list(directory)) {
      assertEquals(1, entries.count());
    }
    var nowhere = directory.resolve("missing").resolve("profile.json");
    assertThrows(KvasirException.class, () -> profile.save(nowhere));
    var e = assertThrows(ProfileException.class, () -> Profile.load(nowhere));
    assertEquals("the profile " + nowhere + " does not exist", e.getMessage());
  }

  @Test
  void everyTruncationIsRefused(@TempDir Path directory) throws Exception {
    var json = profile().toJson();
    for (int length = 0; length < json.length(); length++) {
      var cut = json.substring(0, length);
      assertThrows(ProfileException.class, () -> Profile.fromJson(cut), () -> cut);
    }
    var file = directory.resolve("cut.json");
    Files.writeString(file, json.substring(0, json.length() / 2));
    var e = assertThrows(ProfileException.class, () -> Profile.load(file));
    assertTrue(e.getMessage().contains("cut.json"), e.getMessage());
  }

  @Test
  void whatIsNoProfileIsRefused() {
    for (var json :
        List.of(
            "",
            "null",
            "[]",
            "7",
            "{}",
            "{\"format\": \"something\"}",
            "\u0000\u0001GGUF",
            profile().toJson() + "{}",
            profile().toJson().replace("\"version\":1", "\"version\":2"))) {
      var e = assertThrows(ProfileException.class, () -> Profile.fromJson(json), json);
      assertFalse(e.getMessage().isBlank());
    }
  }

  /**
   * Every single value of the tree, removed or replaced by nonsense, is noticed; only free texts
   * may change.
   */
  @Test
  void everyDamagedFieldIsNoticed() throws Exception {
    var profile = profile();
    int tried = 0;
    for (var path : paths("", mapper.readTree(profile.toJson()))) {
      for (var nonsense : List.of("remove", "null", "\"x\"", "-3", "1e30", "[]", "{}")) {
        var root = mapper.readTree(profile.toJson());
        int slash = path.lastIndexOf('/');
        var parent = root.at(path.substring(0, slash));
        var key = path.substring(slash + 1);
        if (parent instanceof ObjectNode object) {
          if (nonsense.equals("remove")) {
            object.remove(key);
          } else {
            object.set(key, mapper.readTree(nonsense));
          }
        } else if (parent instanceof ArrayNode array) {
          if (nonsense.equals("remove")) {
            array.remove(Integer.parseInt(key));
          } else {
            array.set(Integer.parseInt(key), mapper.readTree(nonsense));
          }
        }
        tried++;
        Profile read;
        try {
          read = Profile.fromJson(root.toString());
        } catch (ProfileException expected) {
          continue;
        }
        // what can still be read differs from what was written, or was written with a default in
        // mind
        assertNotEquals(profile, read, path + " = " + nonsense);
      }
    }
    assertTrue(tried > 500);
  }

  private static List<String> paths(String at, JsonNode node) {
    var paths = new ArrayList<String>();
    if (node.isObject()) {
      node.properties()
          .forEach(
              e -> {
                paths.add(at + "/" + e.getKey());
                paths.addAll(paths(at + "/" + e.getKey(), e.getValue()));
              });
    } else if (node.isArray()) {
      for (int i = 0; i < node.size(); i++) {
        paths.add(at + "/" + i);
        paths.addAll(paths(at + "/" + i, node.get(i)));
      }
    }
    return paths;
  }
}
