package dev.kvasir.cache;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.ProfileException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.function.BooleanSupplier;

/**
 * The JSON of a {@link Profile}. "tokens", "target" and "heads" with "layer", "kvHead", "policy",
 * "kept" and "recovery" are for everybody's scripts; the rest is what it takes to use the profile
 * again.
 */
final class ProfileJson {
  private static final String FORMAT = "kvasir-profile";
  private static final int VERSION = 1;
  static final ObjectMapper MAPPER =
      JsonMapper.builder()
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(DeserializationFeature.FAIL_ON_READING_DUP_TREE_KEY)
          .build();

  private ProfileJson() {}

  static String write(Profile profile) {
    var root = MAPPER.createObjectNode();
    root.put("format", FORMAT).put("version", VERSION).put("tokens", profile.tokens());
    root.set("target", target(profile.target()));
    root.set("policy", policy(profile.policy()));
    putLayers(root.putObject("model"), profile.layers());
    var candidates = root.putArray("candidates");
    for (var candidate : profile.candidates()) {
      candidates.add(candidate(candidate));
    }
    var heads = root.putArray("heads");
    for (var head : profile.heads()) {
      heads.add(head(profile, head));
    }
    try {
      return MAPPER.writeValueAsString(root);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException(e); // a tree of plain numbers and texts can be written
    }
  }

  static void putLayers(ObjectNode model, List<Profile.Layer> of) {
    var layers = model.putArray("layers");
    for (var layer : of) {
      layers
          .addObject()
          .put("layer", layer.layer())
          .put("kvHeads", layer.kvHeads())
          .put("queryGroup", layer.queryGroup())
          .put("keyDim", layer.keyDim())
          .put("valueDim", layer.valueDim())
          .put("slotBytes", layer.slotBytes());
    }
  }

  private static ObjectNode target(Target target) {
    var node = MAPPER.createObjectNode();
    return switch (target) {
      case Target.Recovery(double recovery) -> node.put("recovery", recovery);
      case Target.BudgetFraction(double fraction) -> node.put("budgetFraction", fraction);
      case Target.BudgetBytes(long bytes) -> node.put("budgetBytes", bytes);
    };
  }

  private static ObjectNode policy(FastGen policy) {
    var node = MAPPER.createObjectNode();
    node.put("candidates", policy.candidates().name())
        .put("local", policy.local())
        .put("frequent", policy.frequent())
        .put("pooling", policy.pooling().name())
        .put("score", policy.score().name())
        .put("weight", policy.weight().name())
        .put("sinks", policy.sinks())
        .put("grace", policy.grace())
        .put("minimumTokens", policy.minimumTokens());
    var order = node.putArray("order");
    policy.order().forEach(kind -> order.add(kind.name()));
    return node;
  }

  private static ObjectNode candidate(Candidate candidate) {
    var node = MAPPER.createObjectNode();
    node.put("name", candidate.name())
        .put("full", candidate.full())
        .put("special", candidate.special())
        .put("punctuation", candidate.punctuation())
        .put("frequent", candidate.frequent())
        .put("localTokens", candidate.local().tokens())
        .put("localOfPrompt", candidate.local().ofPrompt());
    return node;
  }

  private static ObjectNode head(Profile profile, HeadProfile head) {
    var node = MAPPER.createObjectNode();
    node.put("layer", head.layer())
        .put("kvHead", head.kvHead())
        .put("policy", profile.chosen(head).name())
        .put("kept", head.kept());
    var recovery = node.putObject("recovery");
    head.paperRecovery().forEach(recovery::put);
    node.put("chosen", head.chosen());
    var recoveries = node.putArray("candidateRecovery");
    var costs = node.putArray("candidateSlots");
    for (int c = 0; c < head.candidates(); c++) {
      recoveries.add(head.recovery(c));
      costs.add(head.cost(c));
    }
    return node;
  }

  /** Reads a profile; {@code source} names it in messages. */
  static Profile read(String json, String source) {
    JsonNode root = parse(json, source, FORMAT, VERSION);
    try {
      return profile(root);
    } catch (IllegalArgumentException e) {
      // what Reader and the records' own checks throw
      throw new ProfileException(
          "%s is damaged: %s; save the profile again".formatted(source, e.getMessage()), e);
    }
  }

  /** The JSON of a format of ours, in a version that is known. */
  static JsonNode parse(String json, String source, String format, int version) {
    JsonNode root;
    try {
      root = MAPPER.readTree(json);
    } catch (JsonProcessingException e) {
      throw new ProfileException(
          "%s is not JSON, or is cut off: %s; save the profile again"
              .formatted(source, e.getOriginalMessage()),
          e);
    }
    if (!root.isObject() || !format.equals(root.path("format").asText())) {
      throw new ProfileException(
          source + " is not a Kvasir profile: it has no \"format\": \"" + format + "\"");
    }
    if (root.path("version").asInt(-1) != version) {
      throw new ProfileException(
          "%s has format version %s, this library reads version %d; save the profile again"
              .formatted(source, root.path("version"), version));
    }
    return root;
  }

  private static Profile profile(JsonNode root) {
    int tokens = integer(root, "tokens");
    var policy = policy(object(root, "policy"), target(object(root, "target")));
    var layers = layers(object(root, "model"));
    var candidates = new ArrayList<Candidate>();
    for (var node : array(root, "candidates")) {
      candidates.add(
          new Candidate(
              text(node, "name"),
              bool(node, "full"),
              bool(node, "special"),
              bool(node, "punctuation"),
              real(node, "frequent"),
              new Window(integer(node, "localTokens"), real(node, "localOfPrompt"))));
    }
    var heads = new ArrayList<HeadProfile>();
    for (var node : array(root, "heads")) {
      heads.add(head(node, candidates));
    }
    return new Profile(policy, tokens, layers, candidates, heads);
  }

  static List<Profile.Layer> layers(JsonNode model) {
    var layers = new ArrayList<Profile.Layer>();
    for (var node : array(model, "layers")) {
      layers.add(
          new Profile.Layer(
              integer(node, "layer"),
              integer(node, "kvHeads"),
              integer(node, "queryGroup"),
              integer(node, "keyDim"),
              integer(node, "valueDim"),
              number(node, "slotBytes", node.path("slotBytes")::canConvertToLong).asLong()));
    }
    return layers;
  }

  private static Target target(JsonNode node) {
    if (node.has("recovery")) {
      return Target.recovery(real(node, "recovery"));
    }
    if (node.has("budgetFraction")) {
      return Target.budgetFraction(real(node, "budgetFraction"));
    }
    return Target.budgetBytes(
        number(node, "budgetBytes", node.path("budgetBytes")::canConvertToLong).asLong());
  }

  private static FastGen policy(JsonNode node, Target target) {
    var order = new ArrayList<Kind>();
    for (var kind : array(node, "order")) {
      order.add(Kind.valueOf(kind.asText()));
    }
    return new FastGen(
        Candidates.valueOf(text(node, "candidates")),
        target,
        real(node, "local"),
        real(node, "frequent"),
        Pooling.valueOf(text(node, "pooling")),
        Score.valueOf(text(node, "score")),
        Weight.valueOf(text(node, "weight")),
        integer(node, "sinks"),
        integer(node, "grace"),
        order,
        integer(node, "minimumTokens"));
  }

  private static HeadProfile head(JsonNode node, List<Candidate> candidates) {
    var recoveries = array(node, "candidateRecovery");
    var costs = array(node, "candidateSlots");
    require(recoveries.size() == candidates.size(), "candidateRecovery", node);
    require(costs.size() == candidates.size(), "candidateSlots", node);
    var recovery = new float[recoveries.size()];
    var cost = new int[costs.size()];
    for (int c = 0; c < recovery.length; c++) {
      recovery[c] = fraction(recoveries.get(c), "candidateRecovery", node);
      require(
          costs.get(c).isIntegralNumber()
              && costs.get(c).canConvertToInt()
              && costs.get(c).asInt() >= 0,
          "candidateSlots",
          node);
      cost[c] = costs.get(c).asInt();
    }
    var paper = new LinkedHashMap<String, Float>();
    for (var entry : object(node, "recovery").properties()) {
      paper.put(entry.getKey(), fraction(entry.getValue(), "recovery", node));
    }
    int chosen = integer(node, "chosen");
    require(chosen >= 0 && chosen < cost.length, "chosen", node);
    require(candidates.get(chosen).name().equals(text(node, "policy")), "policy", node);
    require(cost[chosen] == integer(node, "kept"), "kept", node);
    return new HeadProfile(
        integer(node, "layer"), integer(node, "kvHead"), chosen, recovery, cost, paper);
  }

  // Checked access: each throws IllegalArgumentException that names the field

  static void require(boolean ok, String field, JsonNode parent) {
    if (!ok) {
      var where =
          parent.has("kvHead")
              ? " of KV head %s of layer %s".formatted(parent.get("kvHead"), parent.path("layer"))
              : "";
      throw new IllegalArgumentException(
          "\"%s\"%s is missing or has no sensible value".formatted(field, where));
    }
  }

  static JsonNode number(JsonNode parent, String field, BooleanSupplier fits) {
    var node = parent.path(field);
    require(node.isIntegralNumber() && fits.getAsBoolean(), field, parent);
    return node;
  }

  static int integer(JsonNode parent, String field) {
    return number(parent, field, parent.path(field)::canConvertToInt).asInt();
  }

  static double real(JsonNode parent, String field) {
    require(parent.path(field).isNumber(), field, parent);
    return parent.get(field).asDouble();
  }

  private static float fraction(JsonNode node, String field, JsonNode parent) {
    require(node.isNumber() && node.asDouble() >= 0 && node.asDouble() <= 1, field, parent);
    return node.floatValue();
  }

  private static boolean bool(JsonNode parent, String field) {
    require(parent.path(field).isBoolean(), field, parent);
    return parent.get(field).asBoolean();
  }

  private static String text(JsonNode parent, String field) {
    require(parent.path(field).isTextual(), field, parent);
    return parent.get(field).asText();
  }

  static JsonNode object(JsonNode parent, String field) {
    require(parent.path(field).isObject(), field, parent);
    return parent.get(field);
  }

  static ArrayNode array(JsonNode parent, String field) {
    require(parent.path(field).isArray(), field, parent);
    return (ArrayNode) parent.get(field);
  }
}
