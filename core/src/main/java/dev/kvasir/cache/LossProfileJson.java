package dev.kvasir.cache;

import static dev.kvasir.cache.ProfileJson.MAPPER;
import static dev.kvasir.cache.ProfileJson.array;
import static dev.kvasir.cache.ProfileJson.integer;
import static dev.kvasir.cache.ProfileJson.object;
import static dev.kvasir.cache.ProfileJson.real;
import static dev.kvasir.cache.ProfileJson.require;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.ProfileException;
import java.util.ArrayList;
import java.util.List;

/** The JSON of a {@link LossProfile}. */
final class LossProfileJson {
  private static final String FORMAT = "kvasir-loss-profile";
  private static final int VERSION = 1;

  private LossProfileJson() {}

  static String write(LossProfile profile) {
    var root = MAPPER.createObjectNode();
    root.put("format", FORMAT)
        .put("version", VERSION)
        .put("tokens", profile.tokens())
        .put("budget", profile.budget())
        .put("fullBytes", profile.fullBytes())
        .put("newBytes", profile.newBytes());
    ProfileJson.putLayers(root.putObject("model"), profile.layers());
    var heads = root.putArray("heads");
    for (var head : profile.heads()) {
      heads.add(head(head));
    }
    try {
      return MAPPER.writeValueAsString(root);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException(e); // a tree of plain numbers and texts can be written
    }
  }

  private static ObjectNode head(HeadLosses head) {
    var node = MAPPER.createObjectNode();
    node.put("layer", head.layer())
        .put("kvHead", head.kvHead())
        .put("staying", head.staying())
        .put("firstBin", head.firstBin());
    var slots = node.putArray("slots");
    for (int bin = head.firstBin(); bin < head.endBin(); bin++) {
      slots.add(head.slots(bin));
    }
    return node;
  }

  /** Reads a profile; {@code source} names it in messages. */
  static LossProfile read(String json, String source) {
    JsonNode root = ProfileJson.parse(json, source, FORMAT, VERSION);
    try {
      return profile(root);
    } catch (IllegalArgumentException | IndexOutOfBoundsException e) {
      // what the checked access and the values' own checks throw
      throw new ProfileException(
          "%s is damaged: %s; save the profile again".formatted(source, e.getMessage()), e);
    }
  }

  private static LossProfile profile(JsonNode root) {
    List<HeadLosses> heads = new ArrayList<>();
    for (var node : array(root, "heads")) {
      var counts = array(node, "slots");
      var slots = new int[counts.size()];
      for (int i = 0; i < slots.length; i++) {
        var count = counts.get(i);
        require(count.isIntegralNumber() && count.canConvertToInt(), "slots", node);
        slots[i] = count.asInt();
      }
      heads.add(
          new HeadLosses(
              integer(node, "layer"),
              integer(node, "kvHead"),
              integer(node, "staying"),
              integer(node, "firstBin"),
              slots));
    }
    return new LossProfile(
        integer(root, "tokens"),
        real(root, "budget"),
        real(root, "fullBytes"),
        real(root, "newBytes"),
        ProfileJson.layers(object(root, "model")),
        heads);
  }
}
