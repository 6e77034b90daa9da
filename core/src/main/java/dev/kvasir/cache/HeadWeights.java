package dev.kvasir.cache;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import dev.kvasir.ProfileException;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * How much the model's answer changes with the output of each query head: the trace of E[g gᵀ], g
 * being the gradient of the log-likelihood at the head's output, by the model's layer and query
 * head. {@link Foresight} weighs a head by it, divided by the elements of a value row. Measured
 * once for a model.
 */
public final class HeadWeights {
  /** A head takes some ten bytes. */
  private static final int LARGEST_MIB = 16;

  private static final ObjectMapper MAPPER =
      JsonMapper.builder()
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(DeserializationFeature.FAIL_ON_READING_DUP_TREE_KEY)
          .build();

  private final float[][] trace;

  private HeadWeights(float[][] trace) {
    this.trace = trace;
  }

  /**
   * A table, which is copied.
   *
   * @param trace by the model's layer, one row each, and query head; a layer without attention has
   *     an empty row
   * @throws IllegalArgumentException if an entry is not positive and finite, or there is none
   */
  public static HeadWeights of(float[][] trace) {
    float[][] copy = new float[trace.length][];
    boolean any = false;
    for (int l = 0; l < trace.length; l++) {
      copy[l] = trace[l].clone();
      for (int h = 0; h < copy[l].length; h++) {
        if (!(copy[l][h] > 0 && copy[l][h] < Float.POSITIVE_INFINITY)) {
          throw new IllegalArgumentException(
              "HeadWeights of query head %d of layer %d must be positive and finite: %s"
                  .formatted(h, l, copy[l][h]));
        }
      }
      any |= copy[l].length > 0;
    }
    if (!any) {
      throw new IllegalArgumentException("HeadWeights must have a weight");
    }
    return new HeadWeights(copy);
  }

  /**
   * Reads a JSON file: an object whose {@code "trace"} is a list of layers, each a list with a
   * number for every query head. Other fields are not looked at.
   *
   * @throws ProfileException if the file cannot be read, or is no such table
   */
  public static HeadWeights load(Path file) {
    return parse(JsonFile.read(file, "table of head weights", LARGEST_MIB), file.toString());
  }

  /** The table in a JSON text; {@code source} names it in messages. */
  static HeadWeights parse(String json, String source) {
    JsonNode root;
    try {
      root = MAPPER.readTree(json);
    } catch (JsonProcessingException e) {
      throw new ProfileException(
          "%s is not JSON, or is cut off: %s".formatted(source, e.getOriginalMessage()), e);
    }
    JsonNode layers = root.path("trace");
    if (!layers.isArray()) {
      throw new ProfileException(
          source + " is no table of head weights: it has no list \"trace\" of layers");
    }
    float[][] trace = new float[layers.size()][];
    for (int l = 0; l < trace.length; l++) {
      JsonNode heads = layers.get(l);
      if (!heads.isArray()) {
        throw new ProfileException(
            "%s is damaged: layer %d of \"trace\" is not a list of numbers".formatted(source, l));
      }
      trace[l] = new float[heads.size()];
      for (int h = 0; h < trace[l].length; h++) {
        JsonNode head = heads.get(h);
        trace[l][h] = head.isNumber() ? head.floatValue() : Float.NaN;
      }
    }
    try {
      return of(trace);
    } catch (IllegalArgumentException e) {
      throw new ProfileException("%s is damaged: %s".formatted(source, e.getMessage()), e);
    }
  }

  /** Layers of the table. */
  public int layers() {
    return trace.length;
  }

  /** Query heads of a layer, by the model's layer index. */
  public int queryHeads(int layer) {
    return trace[layer].length;
  }

  /** Entry of a query head, by the model's layer index. */
  public float trace(int layer, int queryHead) {
    return trace[layer][queryHead];
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof HeadWeights that && Arrays.deepEquals(trace, that.trace);
  }

  @Override
  public int hashCode() {
    return Arrays.deepHashCode(trace);
  }

  @Override
  public String toString() {
    int heads = Arrays.stream(trace).mapToInt(layer -> layer.length).sum();
    return "HeadWeights[%d layers, %d query heads]".formatted(trace.length, heads);
  }
}
