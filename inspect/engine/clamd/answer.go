package clamd

import (
	"errors"
	"fmt"
	"strings"

	"mailweir/inspect"
)

// answer reads "stream: OK", "fd[9]: Some.Virus FOUND", "stream: … ERROR", "INSTREAM size limit exceeded. ERROR".
func (e *Engine) answer(line string, o *inspect.Object) ([]inspect.Finding, error) {
	_, what, named := strings.Cut(line, ": ")
	if named && what == "OK" {
		return nil, nil
	}
	if name, ok := strings.CutSuffix(what, " FOUND"); named && ok && name != "" {
		return []inspect.Finding{finding(name, o.Path)}, nil
	}
	if strings.HasSuffix(line, "ERROR") {
		return nil, failure(categoryOfError(line), fmt.Errorf("answer %q", line))
	}
	return nil, failure(inspect.Unavailable, errors.New("answer is not understood: "+fmt.Sprintf("%.200q", line)))
}

// finding turns a name into a finding. ClamAV reports what it could not look into as heuristics, when it is told to
// (AlertEncrypted, AlertExceedsMax, AlertBrokenExecutables): those are no threats.
func finding(name, path string) inspect.Finding {
	f := inspect.Finding{Kind: inspect.Unchecked, Name: name, Path: path, Engine: "clamd"}
	switch {
	case strings.HasPrefix(name, "Heuristics.Encrypted."):
		f.Category = inspect.Encrypted
	case strings.HasPrefix(name, "Heuristics.Limits."):
		f.Category = inspect.Limits
	case strings.HasPrefix(name, "Heuristics.Broken."):
		f.Category = inspect.Broken
	default:
		f.Kind, f.Category = inspect.Threat, inspect.CategoryOf(name)
	}
	return f
}

// categoryOfError tells errors about the object from those about the daemon, by the texts of libclamav's
// cl_strerror() and of clamd itself. What is not known is taken for the daemon's: the message is then tried again.
func categoryOfError(line string) string {
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(strings.ToLower(line), w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("time limit", "timed out", "timeout"):
		return inspect.Timeout
	case has("size limit exceeded", "limit exceeded", "limits exceeded", "too big", "maxrec", "maxsize", "maxfiles", "recursion limit"):
		return inspect.Limits
	case has("password", "encrypted"):
		return inspect.Encrypted
	case has("bad format", "broken data", "parse", "cl_eformat", "unpack", "malformed", "corrupt"):
		return inspect.Broken
	}
	return inspect.Unavailable
}
