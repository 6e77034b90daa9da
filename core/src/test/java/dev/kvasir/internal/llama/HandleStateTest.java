package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

class HandleStateTest {
  private final AtomicInteger freed = new AtomicInteger();
  private final HandleState state = new HandleState(freed::incrementAndGet);

  @Test
  void closingFreesOnce() {
    state.close();
    state.close();
    assertEquals(1, freed.get());
    assertFalse(state.hold());
  }

  @Test
  void theLastHolderFrees() {
    assertTrue(state.hold());
    assertTrue(state.hold());
    state.close();
    assertFalse(state.hold());
    state.release();
    assertEquals(0, freed.get());
    state.release();
    assertEquals(1, freed.get());
    state.close();
    assertEquals(1, freed.get());
  }

  @Test
  void manyThreadsFreeOnceAndNeverUseAFreedHandle() throws InterruptedException {
    List<Thread> threads = new ArrayList<>();
    AtomicInteger misused = new AtomicInteger();
    for (int t = 0; t < 8; t++) {
      threads.add(
          Thread.startVirtualThread(
              () -> {
                for (int i = 0; i < 10_000 && state.hold(); i++) {
                  if (freed.get() != 0) {
                    misused.incrementAndGet();
                  }
                  state.release();
                }
              }));
    }
    Thread.yield();
    state.close();
    for (Thread thread : threads) {
      thread.join();
    }
    assertEquals(1, freed.get());
    assertEquals(0, misused.get());
  }
}
