package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Log is where a log goes: Auto, Stderr[:ShowTimestamp], Syslog[:facility] or an absolute path.
type Log struct {
	Kind     string // "Auto", "Stderr", "Syslog", "File"
	Time     bool   // Stderr:ShowTimestamp
	Facility string // of Syslog
	Path     string // of File
}

// SyslogFacilities are the names that Syslog:<facility> takes.
func SyslogFacilities() []string {
	return []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
		"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Log) UnmarshalText(text []byte) error {
	word := string(text)
	if filepath.IsAbs(word) {
		*l = Log{Kind: "File", Path: filepath.Clean(word)}
		return nil
	}
	kind, arg, hasArg := strings.Cut(word, ":")
	switch {
	case strings.EqualFold(kind, "Auto") && !hasArg:
		*l = Log{Kind: "Auto"}
		return nil
	case strings.EqualFold(kind, "Stderr") && !hasArg:
		*l = Log{Kind: "Stderr"}
		return nil
	case strings.EqualFold(kind, "Stderr") && strings.EqualFold(arg, "ShowTimestamp"):
		*l = Log{Kind: "Stderr", Time: true}
		return nil
	case strings.EqualFold(kind, "Syslog") && !hasArg:
		*l = Log{Kind: "Syslog", Facility: "daemon"}
		return nil
	case strings.EqualFold(kind, "Syslog"):
		for _, f := range SyslogFacilities() {
			if strings.EqualFold(f, arg) {
				*l = Log{Kind: "Syslog", Facility: f}
				return nil
			}
		}
		return fmt.Errorf("%q is not a syslog facility; write one of %s", arg, strings.Join(SyslogFacilities(), ", "))
	case word == "":
		return errors.New("empty; write Auto, Stderr, Stderr:ShowTimestamp, Syslog, Syslog:<facility> or an absolute path")
	}
	return fmt.Errorf("%q is none of Auto, Stderr, Stderr:ShowTimestamp, Syslog, Syslog:<facility> and no absolute path", word)
}

// MarshalText implements encoding.TextMarshaler.
func (l Log) MarshalText() ([]byte, error) {
	switch {
	case l.Kind == "File":
		return []byte(l.Path), nil
	case l.Kind == "Stderr" && l.Time:
		return []byte("Stderr:ShowTimestamp"), nil
	case l.Kind == "Syslog" && l.Facility != "daemon":
		return []byte("Syslog:" + l.Facility), nil
	}
	return []byte(l.Kind), nil
}
