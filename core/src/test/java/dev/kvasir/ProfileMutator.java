package dev.kvasir;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** Makes the JSON of a profile wrong in one to three ways. */
final class ProfileMutator {
  private static final ObjectMapper MAPPER = new ObjectMapper();
  private static final List<String> VALUES =
      List.of(
          "0",
          "-1",
          "1",
          "2147483647",
          "2147483648",
          "-2147483648",
          "9223372036854775807",
          "9223372036854775808",
          "1e400",
          "1e-400",
          "0.5",
          "1.0000001",
          "-0.0",
          "null",
          "true",
          "\"\"",
          "\"FULL\"",
          "\"full\"",
          "\"NaN\"",
          "[]",
          "{}",
          "[[[[0]]]]",
          "{\"a\":{\"a\":{}}}",
          "\"\\u0000\"",
          "\"\\ud800\"");

  private final Random random;
  private final JsonNode root;

  private ProfileMutator(Random random, JsonNode root) {
    this.random = random;
    this.root = root;
  }

  /** The bytes of a wrong file, which follow from the random numbers alone. */
  static byte[] mutate(Random random, String right) {
    try {
      ProfileMutator mutator = new ProfileMutator(random, MAPPER.readTree(right));
      int changes = 1 + random.nextInt(3);
      for (int i = 0; i < changes; i++) {
        mutator.change();
      }
      return mutator.text(MAPPER.writeValueAsString(mutator.root));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private void change() throws IOException {
    List<JsonNode> inner = new ArrayList<>();
    collect(root, inner);
    JsonNode parent = inner.get(random.nextInt(inner.size()));
    if (parent instanceof ObjectNode object) {
      List<String> names = new ArrayList<>();
      object.fieldNames().forEachRemaining(names::add);
      if (names.isEmpty()) {
        object.set("x", value(null));
        return;
      }
      String name = names.get(random.nextInt(names.size()));
      switch (random.nextInt(6)) {
        case 0 -> object.remove(name);
        case 1 -> object.set(name + "x", object.remove(name));
        case 2 -> object.set(name, object.get(names.get(random.nextInt(names.size()))));
        default -> object.set(name, value(object.get(name)));
      }
    } else if (parent instanceof ArrayNode array && !array.isEmpty()) {
      int at = random.nextInt(array.size());
      switch (random.nextInt(6)) {
        case 0 -> array.remove(at);
        case 1 -> array.add(array.get(at).deepCopy());
        case 2 -> array.removeAll();
        case 3 -> array.set(at, array.get(random.nextInt(array.size())).deepCopy());
        default -> array.set(at, value(array.get(at)));
      }
    }
  }

  private static void collect(JsonNode node, List<JsonNode> inner) {
    if (node.isContainerNode()) {
      inner.add(node);
      node.forEach(child -> collect(child, inner));
    }
  }

  private JsonNode value(JsonNode old) throws IOException {
    if (old != null && old.isNumber() && random.nextBoolean()) {
      return old.isIntegralNumber()
          ? MAPPER.getNodeFactory().numberNode(old.asLong() + random.nextInt(5) - 2)
          : MAPPER.getNodeFactory().numberNode(old.asDouble() * random.nextGaussian());
    }
    return MAPPER.readTree(VALUES.get(random.nextInt(VALUES.size())));
  }

  private byte[] text(String json) {
    byte[] bytes = json.getBytes(StandardCharsets.UTF_8);
    return switch (random.nextInt(12)) {
      case 0 -> Arrays.copyOf(bytes, random.nextInt(bytes.length));
      case 1 -> {
        for (int i = 0; i < 4; i++) {
          bytes[random.nextInt(bytes.length)] = (byte) random.nextInt(256);
        }
        yield bytes;
      }
      case 2 -> {
        int depth = random.nextInt(200_000);
        yield withTokens(json, "[".repeat(depth) + "]".repeat(depth));
      }
      case 3 -> withTokens(json, "9".repeat(random.nextInt(100_000)));
      default -> bytes;
    };
  }

  private static byte[] withTokens(String json, String value) {
    return json.replaceFirst("\"tokens\":\\d+", "\"tokens\":" + value)
        .getBytes(StandardCharsets.UTF_8);
  }
}
