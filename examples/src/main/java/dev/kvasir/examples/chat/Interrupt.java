package dev.kvasir.examples.chat;

import dev.kvasir.Reply;
import dev.kvasir.examples.terminal.StandardStreams;
import org.jline.utils.Signals;

/** Ctrl-C while a reply runs: the first ends the reply, a second one the program. */
final class Interrupt implements AutoCloseable {
  /** What a shell expects of a program that was ended by Ctrl-C. */
  static final int EXIT_CODE = 130;

  private static final String SIGNAL = "INT";

  private final Reply reply;
  private final StandardStreams streams;
  private final Object previous;
  private volatile boolean pressed;

  /** Catches Ctrl-C until it is closed. */
  Interrupt(Reply reply, StandardStreams streams) {
    this.reply = reply;
    this.streams = streams;
    this.previous = Signals.register(SIGNAL, this::press);
  }

  /** Whether it was pressed. */
  boolean pressed() {
    return pressed;
  }

  private void press() {
    if (pressed) {
      streams.out().flush();
      streams.err().println();
      System.exit(EXIT_CODE); // the library's shutdown hook ends what still computes
    }
    pressed = true;
    reply.cancel();
  }

  @Override
  public void close() {
    Signals.unregister(SIGNAL, previous);
  }
}
