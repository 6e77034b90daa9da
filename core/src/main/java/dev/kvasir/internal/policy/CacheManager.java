package dev.kvasir.internal.policy;

import dev.kvasir.ExitingException;
import dev.kvasir.ProfileException;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.Full;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Uniform;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ForkJoinPool;
import java.util.function.BooleanSupplier;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Carries out a cache policy over the life of one sequence.
 *
 * <p>Until enough tokens have been seen everything is kept, and FastGen's statistic goes on through
 * prefills and decode steps. Then every head is given its policy, once, and its slots are
 * compacted. From there on the policies are applied again after every decode step, and in bulk
 * after every further prefill.
 *
 * <p>Used by one thread at a time, between evaluations of the model.
 */
public final class CacheManager {
  /** A prefill that grows the sequence by this factor makes the queries before it negligible. */
  private static final int NEGLIGIBLE_BEFORE = 8;

  private static final String UNDECIDED = "undecided";

  private final CacheStore store;
  private final boolean full; // the policy is to keep everything
  private final @Nullable FastGen profiling; // null when the heads' policies are known beforehand
  private final @Nullable Profile given;
  private final @Nullable Uniform uniform;
  private final @Nullable ForesightKeeper foresight; // null: another policy
  private final Ranking ranking;
  private final int grace;
  private final int minimumTokens;
  private final TokenLog log;
  private final CellMap[] cells; // by layer; the layers of one of llama.cpp's caches share one
  private final List<CellMap> cellMaps = new ArrayList<>();
  private final Scratch scratch = new Scratch(); // for the steps

  private int length; // tokens of the sequence
  private @Nullable String failure; // why the policy was given up, until the sequence is emptied
  private boolean tracking;
  private boolean decided;
  private int @Nullable [] bounds; // of the statistic, while it runs
  private int scoredFrom; // position of the first query that the scores count
  private @Nullable Marked marked; // while tokens are evaluated that may be taken back
  private @Nullable Profile profile;
  private List<Candidate> chosen = List.of(); // by layer and head, once decided
  private HeadPolicy[] dropping = {}; // of the heads that do not keep everything

  /**
   * A manager for an empty sequence.
   *
   * @param profile taken from an earlier prompt: its choice and the rest of its policy take the
   *     place of {@code policy}
   * @throws ProfileException if the profile was made for a model of another shape
   */
  public CacheManager(
      CacheStore store, CachePolicy policy, @Nullable Profile profile, TokenKinds kinds) {
    this.store = store;
    this.given = profile;
    this.profile = profile;
    if (profile != null) {
      profile.requireShape(shapes(store));
    }
    int sinks;
    switch (profile != null ? profile.policy() : policy) {
      case Full _ -> {
        full = true;
        profiling = null;
        uniform = null;
        foresight = null;
        ranking = new Ranking(Score.SUM, Weight.NONE);
        sinks = 0;
        grace = 0;
        minimumTokens = 0;
      }
      case FastGen f -> {
        full = false;
        profiling = profile != null ? null : f;
        uniform = null;
        foresight = null;
        ranking = new Ranking(f.score(), f.weight());
        sinks = f.sinks();
        grace = f.grace();
        minimumTokens = f.minimumTokens();
      }
      case Foresight f -> {
        full = false;
        profiling = null;
        uniform = null;
        foresight = new ForesightKeeper(store, f, shapes(store));
        ranking = new Ranking(Score.SUM, Weight.NONE);
        sinks = 0;
        grace = 0;
        minimumTokens = 0;
      }
      case Uniform u -> {
        full = false;
        profiling = null;
        uniform = u;
        foresight = null;
        ranking = new Ranking(u.score(), u.weight());
        sinks = u.sinks();
        grace = u.grace();
        minimumTokens = u.minimumTokens();
      }
    }
    int capacity = 0;
    for (int l = 0; l < store.layers(); l++) {
      capacity = Math.max(capacity, store.shape(l).cells());
    }
    if (foresight != null) { // which looks at positions only
      log = new TokenLog(new Unmarked(kinds), sinks, 0);
      cells = new CellMap[0];
      return;
    }
    log = new TokenLog(full ? new Unmarked(kinds) : kinds, sinks, capacity);
    cells = new CellMap[store.layers()];
    CellMap base = null;
    CellMap sliding = null;
    for (int l = 0; l < cells.length; l++) {
      if (store.shape(l).sliding()) {
        sliding = sliding == null ? newCellMap(l, capacity) : sliding;
        cells[l] = sliding;
      } else {
        base = base == null ? newCellMap(l, capacity) : base;
        cells[l] = base;
      }
    }
  }

  /** Where everything is kept nobody asks for markers, and no template is rendered for them. */
  private record Unmarked(TokenKinds kinds) implements TokenKinds {
    @Override
    public byte kindOf(int token) {
      return kinds.kindOf(token);
    }

    @Override
    public int[][] markers() {
      return new int[0][];
    }
  }

  private CellMap newCellMap(int layer, int capacity) {
    var map = new CellMap(store, layer, capacity);
    cellMaps.add(map);
    return map;
  }

  /** Tokens of the sequence, dropped ones included: the position that the next token gets. */
  public int position() {
    return length;
  }

  private boolean keepsAll() {
    return full || failure != null;
  }

  /**
   * To be called before {@code tokens} tokens are prefilled, in one evaluation of the model or
   * several.
   */
  public void beforePrefill(int tokens) {
    if (keepsAll()) {
      return;
    }
    if (foresight != null) {
      try {
        foresight.beforePrefill();
      } catch (RuntimeException | Error e) {
        giveUp(e);
      }
      mark();
      return;
    }
    mark();
    beginCounting(tokens);
  }

  /** Whether {@link #afterPart} is to be called after every micro-batch of a prompt. */
  public boolean readsByMicroBatch() {
    return foresight != null && failure == null && foresight.sumsWhileReading();
  }

  /**
   * To be called when a part of a prompt was decoded, before the next one is; false when it was
   * cancelled meanwhile, and the prompt is to be taken back. A policy that fails is given up, as in
   * {@link #afterPrefill}.
   *
   * @param position behind the part
   * @param last whether it was the last one
   * @param cancelled asked now and then, on this thread
   * @throws ExitingException if the JVM exits
   */
  public boolean afterPart(int position, boolean last, BooleanSupplier cancelled) {
    if (foresight == null || failure != null) {
      return true;
    }
    try {
      return foresight.afterPart(position, last, cancelled);
    } catch (ExitingException e) {
      throw e;
    } catch (RuntimeException | Error e) {
      giveUp(e);
      return true;
    }
  }

  /** What counting may change. */
  private record Marked(int @Nullable [] bounds, int scoredFrom, boolean tracking) {}

  /**
   * What is counted from here on can be taken back by {@link #rollBack}, until {@link #endMark} or
   * the policy is applied.
   */
  public void mark() {
    if (!keepsAll()) {
      store.mark();
      if (foresight != null) {
        foresight.mark();
      }
      marked = new Marked(bounds, scoredFrom, tracking);
    }
  }

  /** What was counted since the mark stays. */
  public void endMark() {
    if (marked != null) {
      marked = null;
      if (foresight != null) {
        foresight.endMark();
      }
      store.endMark();
    }
  }

  private void beginCounting(int tokens) {
    if (decided) {
      return;
    }
    if (profiling != null) {
      runStatistic(profiling, tokens);
    } else if (!tracking) {
      scoredFrom = log.length();
      trackScores(assigned());
    }
  }

  private void runStatistic(FastGen policy, int tokens) {
    int before = log.length();
    int after = before + tokens;
    boolean enough = after >= policy.minimumTokens();
    if (bounds == null || before == 0 || (enough && before < after / NEGLIGIBLE_BEFORE)) {
      var candidates = new ArrayList<>(CandidateLists.of(policy));
      candidates.addAll(CandidateLists.paper(policy)); // reported in any case
      bounds =
          enough
              ? DistanceBounds.forPrompt(candidates, after)
              : DistanceBounds.forUnknownLength(candidates, policy.minimumTokens());
      scoredFrom = before;
      store.startStatistic(bounds, policy.pooling() == Pooling.MIN);
    }
  }

  /**
   * To be called when a prefill has ended. When the policy fails it is given up: the sequence keeps
   * everything from there on, and {@link #report} says why.
   *
   * @param tokens holds the tokens that were evaluated, which may be fewer than had been announced
   * @param from index of the first one
   * @param count how many
   */
  public void afterPrefill(int[] tokens, int from, int count) {
    length += count;
    if (failure != null) {
      return;
    }
    try {
      endMark();
      if (foresight != null) {
        foresight.afterPrefill(length);
        return;
      }
      for (int i = from; i < from + count; i++) {
        log.append(tokens[i]);
      }
      if (full || count == 0) {
        return;
      }
      if (decided) {
        readCells();
        compact();
      } else {
        decideIfEnough();
      }
    } catch (RuntimeException | Error e) {
      giveUp(e);
    }
  }

  /**
   * To be called after each decode step, with the token that was evaluated. A policy that fails is
   * given up, as in {@link #afterPrefill}.
   */
  public void afterDecodeStep(int token) {
    length++;
    if (failure != null) {
      return;
    }
    try {
      if (foresight != null) {
        foresight.afterStep(length);
        return;
      }
      log.append(token);
      if (full) {
        return;
      }
      if (!decided) {
        decideIfEnough();
        return;
      }
      for (int i = 0; i < cellMaps.size(); i++) {
        cellMaps.get(i).append(log.length() - 1);
      }
      for (var head : dropping) {
        head.step();
      }
      store.flushEvictions();
    } catch (RuntimeException | Error e) {
      giveUp(e);
    }
  }

  /**
   * To be called after {@link #afterDecodeStep} of all sequences that were decoded together: gets
   * ready for the next step, so that it waits for nothing. A policy that fails is given up, as in
   * {@link #afterPrefill}.
   */
  public void prepareStep() {
    if (failure != null) {
      return;
    }
    try {
      prepare();
    } catch (RuntimeException | Error e) {
      giveUp(e);
    }
  }

  private void prepare() {
    if (foresight != null) {
      foresight.prepareStep();
      return;
    }
    for (var head : dropping) {
      head.prepareStep();
    }
    store.readAhead();
  }

  /**
   * The sequence keeps everything from here on. What the heads hold is whole; what was queued for
   * them is not carried out.
   */
  private void giveUp(Throwable cause) {
    Throwable reason = cause;
    while (reason.getMessage() == null && reason.getCause() != null) {
      reason = reason.getCause(); // what another thread threw comes wrapped
    }
    failure = String.valueOf(reason.getMessage() == null ? reason : reason.getMessage());
    dropping = new HeadPolicy[0];
    store.forgetQueued();
    endCounting(cause);
    // Neither is about the policy alone: one is an assumption that does not hold, the other the
    // JVM's own trouble. That memory was short is.
    if (cause instanceof Error e
        && !(e instanceof OutOfMemoryError || e instanceof StackOverflowError)) {
      throw e;
    }
  }

  /** Scores and sums that no one will read cost time; that they cannot be ended is no matter. */
  private void endCounting(Throwable cause) {
    try {
      if (foresight != null) {
        foresight.stop();
      }
      endMark();
      if (bounds != null) {
        bounds = null;
        store.stopStatistic();
      }
      if (tracking) {
        trackNothing();
      }
      store.readAhead();
    } catch (RuntimeException | Error e) {
      if (e != cause) {
        cause.addSuppressed(e);
      }
    }
  }

  private void trackNothing() {
    tracking = false;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        store.track(l, h, false);
      }
    }
  }

  /**
   * To be called when the sequence has been emptied. What was chosen for it is forgotten; a reused
   * profile is not.
   */
  public void clear() {
    boolean wasMarked = marked != null;
    boolean counted = bounds != null;
    boolean tracked = tracking;
    marked = null;
    bounds = null;
    length = 0;
    failure = null;
    decided = false;
    scoredFrom = 0;
    profile = given;
    chosen = List.of();
    dropping = new HeadPolicy[0];
    log.clear();
    cellMaps.forEach(CellMap::clear);
    store.forgetQueued();
    if (wasMarked) {
      store.endMark();
    }
    if (counted) {
      store.stopStatistic();
    }
    if (tracked) {
      trackNothing();
    }
    store.readAhead(); // forgets what was
    if (foresight != null) {
      try {
        foresight.clear();
      } catch (RuntimeException | Error e) { // recording begins anew, which may find no memory
        giveUp(e);
      }
    }
  }

  /**
   * To be called before evaluations since the last prefill or step are taken out of the store: what
   * they have counted goes, and what {@link #beforePrefill} has begun. (A step that fails has been
   * counted nowhere.)
   */
  public void rollBack() {
    if (marked == null) {
      return;
    }
    Marked before = marked;
    marked = null;
    try {
      store.takeBack();
      if (foresight != null) {
        foresight.rollBack();
        return;
      }
      bounds = before.bounds;
      scoredFrom = before.scoredFrom;
      if (!before.tracking && tracking) {
        trackNothing();
      }
    } catch (RuntimeException | Error e) {
      giveUp(e);
    }
  }

  /**
   * To be called after {@link #rollBack}, when the evaluations are out of the store: the next step
   * is prepared once more, from the same state.
   */
  public void rolledBack() {
    prepareStep();
  }

  /**
   * The profile that the heads' policies come from; empty as long as they are undecided, or when
   * nothing is profiled.
   */
  public Optional<Profile> profile() {
    return Optional.ofNullable(profile);
  }

  /** What Foresight has found out; empty as long as it has not chosen, and for other policies. */
  public Optional<LossProfile> lossProfile() {
    return foresight == null ? Optional.empty() : foresight.profile();
  }

  /** What the store holds now. */
  public CacheReport report() {
    var layers = new ArrayList<LayerPlace>();
    var heads = new ArrayList<HeadUse>();
    for (int l = 0; l < store.layers(); l++) {
      layers.add(store.place(l));
      var shape = store.shape(l);
      for (int h = 0; h < shape.kvHeads(); h++) {
        int slots = store.slots(l, h);
        heads.add(
            new HeadUse(
                shape.layer(),
                h,
                policyOf(l, heads.size()),
                slots,
                Math.max(slots, Math.min(length, shape.cells())),
                shape.slotBytes()));
      }
    }
    return new CacheReport(
        length,
        keepsAll() || (foresight != null ? foresight.decided() : decided),
        layers,
        heads,
        store.residentBytes(),
        store.fullBytes(),
        Optional.ofNullable(failure));
  }

  /** What a head is held to, in words. */
  private String policyOf(int layer, int index) {
    if (keepsAll()) {
      return "full";
    }
    if (foresight != null) {
      return foresight.decided() ? foresight.name(layer) : UNDECIDED;
    }
    return decided ? chosen.get(index).name() : UNDECIDED;
  }

  private void decideIfEnough() {
    if (bounds == null && !tracking) {
      beginCounting(0); // nothing was prefilled
    }
    boolean enough =
        log.length() >= minimumTokens && log.length() - scoredFrom >= minimumTokens / 2;
    if (!enough) {
      return;
    }
    readCells();
    if (profiling == null || bounds == null) {
      give(assigned(), null);
    } else {
      var candidates = CandidateLists.of(profiling);
      var meter = new RecoveryMeter(store, profiling, log, scoredFrom, bounds, candidates);
      profile = measure(profiling, meter);
      store.stopStatistic();
      bounds = null;
      var choice = new ArrayList<Candidate>();
      for (var head : profile.heads()) {
        choice.add(profile.chosen(head));
      }
      trackScores(choice);
      give(choice, meter);
    }
    compact();
  }

  private Profile measure(FastGen policy, RecoveryMeter meter) {
    return new Profile(
            policy, log.length(), shapes(store), CandidateLists.of(policy), meter.measure())
        .withTarget(policy.target());
  }

  /** The heads' policies where they are known beforehand. */
  private List<Candidate> assigned() {
    var list = new ArrayList<Candidate>();
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        if (given != null) {
          list.add(given.chosen(given.heads().get(list.size())));
        } else if (uniform != null) {
          list.add(CandidateLists.of(uniform));
        }
      }
    }
    return list;
  }

  private void trackScores(List<Candidate> policies) {
    int next = 0;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        store.track(l, h, HeadPolicy.scored(policies.get(next++)));
      }
    }
    tracking = true;
  }

  private void give(List<Candidate> choice, @Nullable RecoveryMeter meter) {
    var common = new HeadPolicy.Common(store, log, ranking, scoredFrom, grace, scratch);
    var heads = new ArrayList<HeadPolicy>();
    int next = 0;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++, next++) {
        var candidate = choice.get(next);
        if (!candidate.full()) {
          byte pinned = uniform != null ? TokenLog.SINK : HeadPolicy.pinned(candidate);
          int window = meter != null ? meter.window(candidate) : candidate.local().in(log.length());
          double phase = (next + 1.0) / choice.size();
          heads.add(new HeadPolicy(common, cells[l], l, h, candidate, pinned, window, phase));
        }
      }
    }
    chosen = List.copyOf(choice);
    dropping = heads.toArray(HeadPolicy[]::new);
    decided = true;
  }

  private void readCells() {
    cellMaps.forEach(map -> map.readAll(log.length()));
  }

  /** Some heads at a time: threads of the common pool choose, and this one carries it out. */
  private void compact() {
    int most = 0;
    for (var head : dropping) {
      most = Math.max(most, head.slots());
    }
    var scratches =
        Scratch.borrow(
            Math.min(dropping.length, ForkJoinPool.getCommonPoolParallelism() + 1), most);
    try {
      compact(scratches);
    } finally {
      Scratch.giveBack(scratches);
    }
    for (var head : dropping) { // ahead of the decode steps
      scratch.ensure(head.slots());
    }
    store.readAhead(); // forgets what was read: the slots are others now
    prepare();
  }

  private void compact(Scratch[] scratches) {
    for (int from = 0; from < dropping.length; from += scratches.length) {
      int at = from;
      int count = Math.min(scratches.length, dropping.length - from);
      for (int i = 0; i < count; i++) {
        dropping[at + i].announce();
      }
      store.readAhead();
      store.awaitAhead();
      IntStream.range(0, count).parallel().forEach(i -> dropping[at + i].choose(scratches[i]));
      for (int i = 0; i < count; i++) {
        dropping[at + i].keepChosen(scratches[i]);
      }
    }
  }

  static List<Profile.Layer> shapes(CacheStore store) {
    var layers = new ArrayList<Profile.Layer>();
    for (int l = 0; l < store.layers(); l++) {
      var shape = store.shape(l);
      layers.add(
          new Profile.Layer(
              shape.layer(),
              shape.kvHeads(),
              shape.queryGroup(),
              shape.keyDim(),
              shape.valueDim(),
              shape.slotBytes()));
    }
    return layers;
  }
}
