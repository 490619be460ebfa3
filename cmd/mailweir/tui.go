package main

// Messages to people follow a few rules. What was asked for goes to standard output and nothing else does; everything
// about it goes to standard error, begins with "mailweir: ", has no capital and no full stop. An error says what is
// wrong, a hint on a line of its own what to do about it. Text that came by mail is never written to a terminal with
// its control characters.

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
)

// hintError is an error with what to do about it.
type hintError struct {
	err   error
	hints []string
}

func (h *hintError) Error() string { return h.err.Error() }
func (h *hintError) Unwrap() error { return h.err }

func hinted(err error, hints ...string) error { return &hintError{err, hints} }

// usage is an error in the command line.
func usage(err error) error {
	text := err.Error()
	if strings.HasPrefix(text, "unexpected argument") || strings.HasPrefix(text, "unknown flag") || strings.HasPrefix(text, "expected") {
		return hinted(err, "mailweir --help lists the commands, mailweir COMMAND --help their options")
	}
	return err
}

// status is an exit status without a message.
type status int

func (s status) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// fail writes an error with its hints and returns the exit status.
func (a *app) fail(err error) int {
	var s status
	if errors.As(err, &s) {
		return int(s)
	}
	var problems config.Problems
	if errors.As(err, &problems) && len(problems) > 1 {
		for _, p := range problems {
			fmt.Fprintf(a.stderr, "mailweir: error: %v\n", p)
		}
		a.say("%d errors in the configuration", len(problems))
		return 2
	}
	fmt.Fprintf(a.stderr, "mailweir: error: %v\n", err)
	var h *hintError
	if errors.As(err, &h) {
		for _, hint := range h.hints {
			a.hint("%s", hint)
		}
	}
	if errors.Is(err, control.ErrNotRunning) {
		a.hint("start it by systemctl start mailweir, or mailweir run")
	}
	return 2
}

// say writes a remark.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.stderr, "mailweir: "+format+"\n", args...)
}

func (a *app) hint(format string, args ...any) {
	fmt.Fprintf(a.stderr, "mailweir: hint: "+format+"\n", args...)
}

// print writes what was asked for.
func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format, args...)
	return err
}

// plain makes text from strangers fit for a terminal and for one line.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}
