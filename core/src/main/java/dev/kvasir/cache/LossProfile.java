package dev.kvasir.cache;

import dev.kvasir.KvasirException;
import dev.kvasir.ProfileException;
import dev.kvasir.internal.file.WholeFile;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;

/**
 * What {@link Foresight} found out about the slots of a sequence when it chose among them: how the
 * losses are distributed in every KV head. What another budget would keep, and lose, follows
 * without reading the prompt again; up to a bin of {@link HeadLosses}, which the choice itself is
 * finer than. Slots that an earlier choice dropped are not in it.
 *
 * @param tokens length of the sequence
 * @param budget that was chosen by
 * @param fullBytes of keys and values in an f16 cache, of the tokens and half a block of new ones
 * @param newBytes that half a block of new tokens takes in this cache, with the slots' tables
 * @param layers the layers with a KV cache, ascending
 * @param heads the KV heads, by layer and head
 */
public record LossProfile(
    int tokens,
    double budget,
    double fullBytes,
    double newBytes,
    List<Profile.Layer> layers,
    List<HeadLosses> heads) {
  /** Bytes of the tables of a slot: its cell, position, score and entry by cell. */
  public static final int TABLE_BYTES = 16;

  /** A head takes some hundred numbers. */
  private static final int LARGEST_MIB = 128;

  /** Checks that the parts belong together. */
  public LossProfile {
    Ranges.atLeast("LossProfile.tokens", tokens, 1);
    Ranges.fraction("LossProfile.budget", budget);
    bytes("LossProfile.fullBytes", fullBytes);
    bytes("LossProfile.newBytes", newBytes);
    layers = List.copyOf(layers);
    heads = List.copyOf(heads);
    int next = 0;
    for (var layer : layers) {
      Ranges.atLeast("LossProfile.slotBytes", layer.slotBytes(), 0);
      for (int h = 0; h < layer.kvHeads(); h++, next++) {
        if (next >= heads.size()
            || heads.get(next).layer() != layer.layer()
            || heads.get(next).kvHead() != h) {
          throw new IllegalArgumentException(
              "no figures for KV head %d of layer %d".formatted(h, layer.layer()));
        }
      }
    }
    if (next != heads.size()) {
      throw new IllegalArgumentException("%d heads, but %d expected".formatted(heads.size(), next));
    }
  }

  private static void bytes(String name, double value) {
    if (!(value >= 0 && value < Double.POSITIVE_INFINITY)) {
      throw new IllegalArgumentException(name + " must be a number of bytes: " + value);
    }
  }

  /** What a budget keeps: all of the bins above one, and a part of that one. */
  private record Cut(int bin, double part) {}

  private Cut cut(double ofBudget) {
    Ranges.fraction("budget", ofBudget);
    double left = Math.floor(ofBudget * fullBytes - newBytes);
    var bytes = new double[HeadLosses.BINS];
    int next = 0;
    for (var layer : layers) {
      long slotBytes = layer.slotBytes() + TABLE_BYTES;
      for (int h = 0; h < layer.kvHeads(); h++) {
        var head = heads.get(next++);
        left -= (double) head.staying() * slotBytes;
        for (int bin = head.firstBin(); bin < head.endBin(); bin++) {
          bytes[bin] += (double) head.slots(bin) * slotBytes;
        }
      }
    }
    for (int bin = bytes.length - 1; bin >= 0; bin--) {
      if (bytes[bin] > left) {
        return new Cut(bin, Math.max(0, left) / bytes[bin]);
      }
      left -= bytes[bin];
    }
    return new Cut(-1, 0);
  }

  private static int kept(HeadLosses head, Cut cut) {
    int kept = head.staying();
    for (int bin = Math.max(head.firstBin(), cut.bin + 1); bin < head.endBin(); bin++) {
      kept += head.slots(bin);
    }
    return kept + (int) (head.slots(cut.bin) * cut.part);
  }

  /** Slots of every head, by layer and head, that a budget keeps. */
  public List<Integer> slotsAt(double budget) {
    var cut = cut(budget);
    return heads.stream().map(head -> kept(head, cut)).toList();
  }

  /** Bytes of keys, values and tables of the slots that a budget keeps. */
  public long bytesAt(double budget) {
    var cut = cut(budget);
    long bytes = 0;
    int next = 0;
    for (var layer : layers) {
      for (int h = 0; h < layer.kvHeads(); h++) {
        bytes += kept(heads.get(next++), cut) * (layer.slotBytes() + TABLE_BYTES);
      }
    }
    return bytes;
  }

  /**
   * The loss of all slots that a budget drops, as {@link Foresight} counts it: good for comparing
   * budgets. Infinite when a slot must go whose loss is.
   */
  public double lossAt(double budget) {
    var cut = cut(budget);
    double loss = 0;
    int next = 0;
    for (var layer : layers) {
      long slotBytes = layer.slotBytes() + TABLE_BYTES;
      for (int h = 0; h < layer.kvHeads(); h++) {
        var head = heads.get(next++);
        for (int bin = head.firstBin(); bin < Math.min(head.endBin(), cut.bin + 1); bin++) {
          double dropped = head.slots(bin) * (bin == cut.bin ? 1 - cut.part : 1);
          double middle = (HeadLosses.leastOf(bin) + (double) HeadLosses.leastOf(bin + 1)) / 2;
          loss += dropped == 0 ? 0 : dropped * slotBytes * middle;
        }
      }
    }
    return loss;
  }

  /**
   * The profile as JSON, the fields of which are stable; {@link #fromJson} takes it back without
   * loss.
   */
  public String toJson() {
    return LossProfileJson.write(this);
  }

  /**
   * A profile from its JSON.
   *
   * @throws ProfileException if the text is not a whole profile of a known format version
   */
  public static LossProfile fromJson(String json) {
    return LossProfileJson.read(json, "the profile");
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
  public static LossProfile load(Path file) {
    return LossProfileJson.read(JsonFile.read(file, "profile", LARGEST_MIB), file.toString());
  }
}
