package dev.kvasir.internal.policy;

import dev.kvasir.cache.HeadLosses;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import java.util.Arrays;
import java.util.List;

/** Takes down how the losses of all heads are distributed while a choice is made. */
final class LossCounts implements LossChoice.Losses {
  private final CacheStore store;
  private final List<Profile.Layer> layers;
  private final HeadLosses[] heads;
  private final int[] layerOf; // by head, numbered through
  private final int[] headOf;

  LossCounts(CacheStore store, List<Profile.Layer> layers) {
    this.store = store;
    this.layers = layers;
    int all = layers.stream().mapToInt(Profile.Layer::kvHeads).sum();
    heads = new HeadLosses[all];
    layerOf = new int[all];
    headOf = new int[all];
    int next = 0;
    for (var layer : layers) {
      for (int h = 0; h < layer.kvHeads(); h++, next++) {
        layerOf[next] = layer.layer();
        headOf[next] = h;
      }
    }
  }

  @Override
  public void head(int head, int staying, int[] bins) {
    int end = bins.length;
    while (end > 0 && bins[end - 1] == 0) {
      end--;
    }
    int first = 0;
    while (first < end && bins[first] == 0) {
      first++;
    }
    int[] counts = Arrays.copyOfRange(bins, first, end);
    heads[head] = new HeadLosses(layerOf[head], headOf[head], staying, first, counts);
  }

  /** The profile of a sequence of so many tokens, by what was counted. */
  LossProfile profile(int tokens, double budget) {
    return new LossProfile(
        tokens,
        budget,
        ForesightBudget.full(store, tokens),
        ForesightBudget.block(store),
        layers,
        List.of(heads));
  }
}
