package dev.kvasir.cache;

import dev.kvasir.KvasirException;
import dev.kvasir.ProfileException;
import dev.kvasir.internal.file.WholeFile;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.OptionalDouble;

/**
 * What FastGen found out about a model's heads on one prompt: recovery and cost of every candidate
 * in every KV head, and what was chosen from them. It can be inspected, saved, aimed at another
 * target, and used for another prompt.
 *
 * @param policy the policy that was profiled for; its target is the one that the choice aims at
 * @param tokens length of the profiled prompt
 * @param layers the layers with a KV cache, ascending
 * @param candidates what was chosen from; the last one keeps everything
 * @param heads the KV heads, by layer and head
 */
public record Profile(
    FastGen policy,
    int tokens,
    List<Layer> layers,
    List<Candidate> candidates,
    List<HeadProfile> heads) {

  /** A head takes about 6 KiB: room for twenty thousand. */
  private static final int LARGEST_FILE = 128 << 20;

  /**
   * The shape of one layer.
   *
   * @param layer the model's layer index
   * @param kvHeads KV heads
   * @param queryGroup query heads that share one KV head
   * @param keyDim elements of a key row
   * @param valueDim elements of a value row
   * @param slotBytes K and V bytes of one slot of one KV head when the prompt was profiled
   */
  public record Layer(
      int layer, int kvHeads, int queryGroup, int keyDim, int valueDim, long slotBytes) {

    /**
     * Whether a layer of another model or cache has the same shape, whatever type its KV cache has.
     */
    public boolean sameShape(Layer other) {
      return layer == other.layer
          && kvHeads == other.kvHeads
          && queryGroup == other.queryGroup
          && keyDim == other.keyDim
          && valueDim == other.valueDim;
    }
  }

  /** Checks that the parts belong together. */
  public Profile {
    Objects.requireNonNull(policy, "policy");
    Ranges.atLeast("Profile.tokens", tokens, 1);
    layers = List.copyOf(layers);
    candidates = List.copyOf(candidates);
    heads = List.copyOf(heads);
    if (candidates.isEmpty() || !candidates.getLast().full()) {
      throw new IllegalArgumentException("the last candidate must keep everything");
    }
    int next = 0;
    for (var layer : layers) {
      for (int h = 0; h < layer.kvHeads; h++, next++) {
        if (next >= heads.size()
            || heads.get(next).layer() != layer.layer
            || heads.get(next).kvHead() != h
            || heads.get(next).candidates() != candidates.size()) {
          throw new IllegalArgumentException(
              "no figures for KV head %d of layer %d".formatted(h, layer.layer));
        }
      }
    }
    if (next != heads.size()) {
      throw new IllegalArgumentException("%d heads, but %d expected".formatted(heads.size(), next));
    }
  }

  /** What the choice aims at. */
  public Target target() {
    return policy.target();
  }

  /** What a head was given. */
  public Candidate chosen(HeadProfile head) {
    return candidates.get(head.chosen());
  }

  /** The same figures with the choice made again for another target. */
  public Profile withTarget(Target target) {
    var choice = new Choice(this).of(target);
    var chosen = new ArrayList<HeadProfile>(heads.size());
    for (int h = 0; h < choice.length; h++) {
      chosen.add(heads.get(h).choosing(choice[h]));
    }
    return new Profile(policy.withTarget(target), tokens, layers, candidates, chosen);
  }

  /** K and V bytes of the profiled prompt under the chosen policies. */
  public long bytes() {
    return new Choice(this).bytes(heads.stream().mapToInt(HeadProfile::chosen).toArray());
  }

  /** K and V bytes of the profiled prompt in the full cache. */
  public long fullBytes() {
    return bytesAt(1);
  }

  /**
   * K and V bytes of the profiled prompt if every head took its cheapest candidate of that
   * recovery.
   */
  public long bytesAt(double recovery) {
    var choice = new Choice(this);
    return choice.bytes(choice.of(Target.recovery(recovery)));
  }

  /**
   * The highest recovery target whose policies fit a budget: {@code bytesAt(recovery) <= bytes}.
   * Empty if not even the cheapest candidates do.
   */
  public OptionalDouble recoveryForBudget(long bytes) {
    return new Choice(this).recoveryForBudget(bytes);
  }

  /** Mean over the heads of the attention that their chosen candidates recover. */
  public double meanRecovery() {
    return heads.stream().mapToDouble(HeadProfile::recovery).average().orElse(1);
  }

  /**
   * The profile as JSON, the fields of which are stable; {@link #fromJson} takes it back without
   * loss.
   */
  public String toJson() {
    return ProfileJson.write(this);
  }

  /**
   * A profile from its JSON.
   *
   * @throws ProfileException if the text is not a whole profile of a known format version
   */
  public static Profile fromJson(String json) {
    return ProfileJson.read(json, "the profile");
  }

  /**
   * Writes the JSON to a file, which is replaced as a whole. A link, a device or a pipe is written
   * through.
   *
   * @throws KvasirException if it cannot be written
   */
  public void save(Path file) {
    try {
      WholeFile.write(file, toJson().getBytes(StandardCharsets.UTF_8));
    } catch (IOException e) {
      throw new KvasirException("the profile could not be written to " + file + ": " + e, e);
    }
  }

  /**
   * Reads a profile that {@link #save} wrote.
   *
   * @throws ProfileException if the file cannot be read, or is not a whole profile of a known
   *     format version
   */
  public static Profile load(Path file) {
    byte[] bytes;
    try (InputStream in = Files.newInputStream(file)) {
      long size = Files.size(file);
      bytes = size > LARGEST_FILE ? new byte[0] : in.readNBytes(LARGEST_FILE + 1);
      if (size > LARGEST_FILE || bytes.length > LARGEST_FILE) {
        throw new ProfileException(
            "%s is larger than %d MiB, and no profile is".formatted(file, LARGEST_FILE >> 20));
      }
    } catch (NoSuchFileException e) {
      throw new ProfileException("the profile " + file + " does not exist", e);
    } catch (IOException e) {
      throw new ProfileException("the profile " + file + " cannot be read: " + e, e);
    }
    return ProfileJson.read(new String(bytes, StandardCharsets.UTF_8), file.toString());
  }

  /**
   * Checks that the profile fits a model.
   *
   * @param model the model's layers with a KV cache, ascending
   * @throws ProfileException if their number, heads or head dimensions differ
   */
  public void requireShape(List<Layer> model) {
    boolean same = layers.size() == model.size();
    for (int l = 0; same && l < model.size(); l++) {
      same = layers.get(l).sameShape(model.get(l));
    }
    if (!same) {
      throw new ProfileException(
          "the profile was made for another model: it has %s, this model has %s; profile this model and save that"
              .formatted(describe(layers), describe(model)));
    }
  }

  private static String describe(List<Layer> layers) {
    int kvHeads = layers.stream().mapToInt(Layer::kvHeads).sum();
    var dims = layers.stream().mapToInt(Layer::keyDim).distinct().toArray();
    var groups = layers.stream().mapToInt(Layer::queryGroup).distinct().toArray();
    return "%d layers with %d KV heads, query groups of %s, head dimension %s"
        .formatted(layers.size(), kvHeads, Arrays.toString(groups), Arrays.toString(dims));
  }
}
