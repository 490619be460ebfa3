package gateway

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// harden makes sure that no core dump of this process is ever written: it would hold keys, passwords and mail. The
// limit alone does not stop a core_pattern that is a pipe; not being dumpable does.
func harden() error {
	var errs []error
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("forbid core dumps: %w", err))
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("make process not dumpable: %w", err))
	}
	return errors.Join(errs...)
}

// now is the time as logs show it.
func now() string { return time.Now().UTC().Format("2006-01-02T15:04:05.000Z") }
