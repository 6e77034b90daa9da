package dev.kvasir.examples.chat;

import dev.kvasir.InvalidOptionException;
import dev.kvasir.Model;
import dev.kvasir.Session;
import dev.kvasir.SessionOptions;
import dev.kvasir.UnsupportedModelException;
import java.util.List;

/** Opens a session with the first options of several that the model has a path for. */
final class OpenedSession {
  private OpenedSession() {}

  /**
   * The session of the first options that do; what the last ones are refused for is thrown.
   *
   * @param choices the best first; at least one
   */
  static Session of(Model model, List<SessionOptions> choices) {
    for (var options : choices.subList(0, choices.size() - 1)) {
      try {
        return model.newSession(options);
      } catch (UnsupportedModelException | InvalidOptionException _) {
        // nobody asked for these options: the next ones ask for less
      }
    }
    return model.newSession(choices.getLast());
  }
}
