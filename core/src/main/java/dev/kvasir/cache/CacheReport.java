package dev.kvasir.cache;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.SequencedMap;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * What a session's cache holds.
 *
 * @param tokens tokens of the sequence, dropped ones included
 * @param decided whether the heads' policies have been chosen; everything is kept until then
 * @param layers where the cache of every layer is, ascending by the model's layer index
 * @param heads every KV head, by layer and head
 * @param residentBytes bytes of memory pages that the cache occupies: keys, values and slot tables
 * @param allocatedBytes K and V bytes that an unmodified llama.cpp allocates for the whole context
 * @param policyFailure why the policy was given up: something failed behind a decode, and the
 *     sequence has kept every token since, until it is cleared; empty: it was not
 */
public record CacheReport(
    int tokens,
    boolean decided,
    List<LayerPlace> layers,
    List<HeadUse> heads,
    long residentBytes,
    long allocatedBytes,
    Optional<String> policyFailure) {

  /** The report of a cache whose policy was not given up. */
  public CacheReport(
      int tokens,
      boolean decided,
      List<LayerPlace> layers,
      List<HeadUse> heads,
      long residentBytes,
      long allocatedBytes) {
    this(tokens, decided, layers, heads, residentBytes, allocatedBytes, Optional.empty());
  }

  /** Copies the lists. */
  public CacheReport {
    layers = List.copyOf(layers);
    heads = List.copyOf(heads);
  }

  /** All heads together. */
  public CacheUse total() {
    var sum = CacheUse.NOTHING;
    for (var head : heads) {
      sum = sum.plus(head);
    }
    return sum;
  }

  /** Slots held, over all heads. */
  public long keptSlots() {
    return total().slots();
  }

  /** K and V bytes held. */
  public long keptBytes() {
    return total().bytes();
  }

  /** Held slots as a fraction of what would be held if nothing were dropped. */
  public double keptFraction() {
    return total().keptFraction();
  }

  /** What the heads of each policy hold, by the policy's name, ascending. */
  public SequencedMap<String, CacheUse> byPolicy() {
    return by(HeadUse::policy);
  }

  /** What the heads of each layer hold, by the model's layer index, ascending. */
  public SequencedMap<Integer, CacheUse> byLayer() {
    return by(HeadUse::layer);
  }

  /** What the heads on each device hold, by the device's name, in the order of the layers. */
  public SequencedMap<String, CacheUse> byDevice() {
    var groups = new LinkedHashMap<String, CacheUse>();
    var uses = byLayer();
    for (var place : layers) {
      groups.merge(
          place.device(), uses.getOrDefault(place.layer(), CacheUse.NOTHING), CacheUse::plus);
    }
    return Collections.unmodifiableSequencedMap(groups);
  }

  private <K extends Comparable<K>> SequencedMap<K, CacheUse> by(Function<HeadUse, K> key) {
    var groups = new TreeMap<K, CacheUse>();
    for (var head : heads) {
      groups.merge(key.apply(head), CacheUse.NOTHING.plus(head), (sum, one) -> sum.plus(head));
    }
    return Collections.unmodifiableSequencedMap(groups);
  }
}
