package dev.kvasir.bindings;

import java.nio.file.Path;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** The per-user directory for files that can be fetched or extracted again. */
public final class CacheDirectory {
  private CacheDirectory() {}

  /**
   * Kvasir's cache directory: {@code $XDG_CACHE_HOME/kvasir} where that variable is set, else the
   * place that the operating system has for it ({@code ~/.cache}, {@code ~/Library/Caches}, {@code
   * %LOCALAPPDATA%}). It need not exist yet.
   */
  public static Path path() {
    return path(Platform.current(), System.getenv(), System.getProperty("user.home"));
  }

  static Path path(Platform platform, Map<String, String> environment, String home) {
    Path base = absolute(environment.get("XDG_CACHE_HOME"));
    if (base == null) {
      base =
          switch (platform.os()) {
            case "macos" -> Path.of(home, "Library", "Caches");
            case "windows" -> {
              Path local = absolute(environment.get("LOCALAPPDATA"));
              yield local != null ? local : Path.of(home, "AppData", "Local");
            }
            default -> Path.of(home, ".cache");
          };
    }
    return base.resolve("kvasir");
  }

  // The XDG base directory specification: relative paths are to be ignored.
  private static @Nullable Path absolute(@Nullable String value) {
    if (value == null || value.isEmpty()) {
      return null;
    }
    Path path = Path.of(value);
    return path.isAbsolute() ? path : null;
  }
}
