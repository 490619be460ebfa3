package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong in a configuration: what, where, and what would be right.
type Problem struct {
	File  string
	Line  int    // 0 when it concerns no line in particular
	Param string // "Section.Key", or empty
	Text  string
}

// Error returns "file:line: Section.Key: text".
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Param != "" {
		b.WriteString(p.Param + ": ")
	}
	return b.String() + p.Text
}

// Problems is everything that is wrong in a configuration, one a line.
type Problems []Problem

// Error implements error.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// sorted returns ps in the order of the file, or nil.
func (ps Problems) sorted() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int { return a.Line - b.Line })
	return ps
}
