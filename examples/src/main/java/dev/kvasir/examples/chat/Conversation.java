package dev.kvasir.examples.chat;

import dev.kvasir.Model;
import dev.kvasir.ReplyStatistics;
import dev.kvasir.Session;
import dev.kvasir.SessionOptions;
import dev.kvasir.StopReason;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import dev.kvasir.examples.terminal.Units;
import java.util.List;
import java.util.Optional;

/** A session whose answers go to standard output as they come. */
final class Conversation implements AutoCloseable {
  private final StandardStreams streams;
  private final Session session;
  private final ProgressBar prefill;
  private final boolean remarks;

  /**
   * Opens the session.
   *
   * @param choices the options to open it with, the best first: the first ones that the model has a
   *     path for
   * @param remarks whether counts and times follow every answer
   */
  Conversation(
      Model model, List<SessionOptions> choices, StandardStreams streams, boolean remarks) {
    this.streams = streams;
    this.remarks = remarks;
    this.prefill = new ProgressBar(streams, "Reading");
    this.session =
        OpenedSession.of(
            model,
            choices.stream().map(options -> options.withPrefillListener(this::prefilled)).toList());
  }

  private void prefilled(int done, int total) {
    if (done < total) {
      prefill.update(done, total, "of " + total + " tokens");
    } else {
      prefill.clear();
    }
  }

  Session session() {
    return session;
  }

  /**
   * Answers a message.
   *
   * @return why the answer ended
   */
  StopReason answer(String message) {
    var out = streams.out();
    try (var reply = session.chat(message);
        var interrupt = new Interrupt(reply, streams)) {
      boolean lineOpen = false;
      for (var piece : reply) {
        out.print(piece);
        lineOpen = !piece.endsWith("\n");
        if (out.checkError()) { // flushes; nobody reads any more
          break;
        }
      }
      prefill.clear();
      if (lineOpen) {
        out.println();
        out.flush();
      }
      var statistics = reply.statistics();
      var reason =
          interrupt.pressed()
              ? StopReason.CANCELLED
              : statistics.stopReason().orElse(StopReason.CLOSED);
      remark(statistics, reason);
      return reason;
    } finally {
      prefill.clear();
    }
  }

  private void remark(ReplyStatistics statistics, StopReason reason) {
    notice(statistics, reason, session.contextSize()).ifPresent(streams.err()::println);
    if (remarks) {
      var use = session.cacheReport().total();
      streams
          .err()
          .println(
              "[read %d tokens at %s/s, wrote %d at %s/s%s; cache: %s of %d tokens, %s]"
                  .formatted(
                      statistics.promptTokens(),
                      Units.decimal(statistics.prefillTokensPerSecond(), 1),
                      statistics.generatedTokens(),
                      Units.decimal(statistics.decodeTokensPerSecond(), 1),
                      reason == StopReason.CANCELLED ? ", ended by Ctrl-C" : "",
                      Units.percent(use.keptFraction()),
                      session.position(),
                      Units.bytes(use.bytes())));
    }
  }

  /** What must be known of an answer, whether or not there are remarks. */
  static Optional<String> notice(ReplyStatistics statistics, StopReason reason, int contextSize) {
    if (statistics.sessionEmptied()) {
      return Optional.of(
          "The conversation begins anew: the model's sliding window had moved on, and what was said before could not be brought back.");
    }
    return switch (reason) {
      case CONTEXT_FULL ->
          Optional.of(
              "The context of %d tokens is full: /clear begins anew, -c N makes it larger."
                  .formatted(contextSize));
      default -> Optional.empty();
    };
  }

  @Override
  public void close() {
    session.close();
  }
}
