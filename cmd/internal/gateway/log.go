package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"

	"mailweir/cmd/internal/config"
)

// LevelNotice is between Info and Warning: what an administrator may want to act on, when nothing is wrong.
const LevelNotice = slog.Level(2)

// logs is the one place to which everything is logged. Where that is, and how much, can change while it is in use.
type logs struct {
	level slog.LevelVar

	mu    sync.Mutex
	buf   bytes.Buffer
	write func(slog.Level, []byte) error
	close func() error
}

// newLogs returns logs that write as said. Auto is standard error.
func newLogs(to config.Log, level string, stderr io.Writer) (*logs, error) {
	l := &logs{close: func() error { return nil }}
	if err := l.set(to, level, stderr); err != nil {
		return nil, err
	}
	return l, nil
}

// set changes destination and level. After an error nothing has changed.
func (l *logs) set(to config.Log, level string, stderr io.Writer) error {
	write, closer, err := open(to, stderr)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.close()
	l.write, l.close = write, closer
	l.level.Set(levelOf(level))
	return err
}

func levelOf(name string) slog.Level {
	switch name {
	case "Debug":
		return slog.LevelDebug
	case "Info":
		return slog.LevelInfo
	case "Warning":
		return slog.LevelWarn
	case "Error":
		return slog.LevelError
	}
	return LevelNotice
}

// open returns the function that writes one line, and the one that closes what it writes to.
func open(to config.Log, stderr io.Writer) (write func(slog.Level, []byte) error, closer func() error, err error) {
	nothing := func() error { return nil }
	prefix := func(level slog.Level, line []byte) error {
		// sd-daemon(3): the journal takes the priority from <N> at the beginning of a line.
		_, err := stderr.Write(append(fmt.Appendf(nil, "<%d>", severity(level)), line...))
		return err
	}
	timed := func(w io.Writer) func(slog.Level, []byte) error {
		return func(_ slog.Level, line []byte) error {
			_, err := w.Write(append([]byte(now()+" "), line...))
			return err
		}
	}
	switch to.Kind {
	case "Stderr":
		if to.Time {
			return timed(stderr), nothing, nil
		}
		return prefix, nothing, nil
	case "Syslog":
		return openSyslog(to.Facility)
	case "File":
		f, err := os.OpenFile(to.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("open log: %w", err)
		}
		return timed(f), f.Close, nil
	}
	if os.Getenv("JOURNAL_STREAM") != "" {
		return prefix, nothing, nil
	}
	return timed(stderr), nothing, nil
}

func openSyslog(facility string) (func(slog.Level, []byte) error, func() error, error) {
	number := 0
	for i, f := range config.SyslogFacilities() {
		if f == facility {
			number = i
			if i >= 12 { // local0 is 16: 12 to 15 are not in use on Linux
				number = i + 4
			}
		}
	}
	w, err := syslog.New(syslog.Priority(number<<3)|syslog.LOG_INFO, "mailweir")
	if err != nil {
		return nil, nil, fmt.Errorf("open syslog: %w", err)
	}
	return func(level slog.Level, line []byte) error {
		text := string(bytes.TrimSuffix(line, []byte("\n")))
		switch severity(level) {
		case 3:
			return w.Err(text)
		case 4:
			return w.Warning(text)
		case 5:
			return w.Notice(text)
		case 6:
			return w.Info(text)
		}
		return w.Debug(text)
	}, w.Close, nil
}

// severity is the number that syslog gives to a level. RFC 5424 §6.2.1
func severity(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 4
	case level >= LevelNotice:
		return 5
	case level >= slog.LevelInfo:
		return 6
	}
	return 7
}

// Close closes the destination.
func (l *logs) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.close()
}

// logger returns the slog front of l.
func (l *logs) logger() *slog.Logger {
	return slog.New(&logHandler{logs: l, text: slog.NewTextHandler(&l.buf, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			if len(groups) == 0 && a.Key == slog.LevelKey && a.Value.Any() == LevelNotice {
				a.Value = slog.StringValue("NOTICE")
			}
			return a
		},
	})})
}

// logHandler formats a record as text into the common buffer and hands it to the destination as one line.
type logHandler struct {
	logs *logs
	text slog.Handler
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.logs.level.Level()
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.logs.mu.Lock()
	defer h.logs.mu.Unlock()
	h.logs.buf.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	return h.logs.write(r.Level, h.logs.buf.Bytes())
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.logs, h.text.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.logs, h.text.WithGroup(name)}
}
