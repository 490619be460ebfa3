package gateway

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// supervisor tells systemd how the gateway does (sd_notify). Without systemd it says nothing.
type supervisor struct{ log *slog.Logger }

func (s supervisor) say(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Debug("cannot notify systemd", "state", state, "err", err)
	}
}

func (s supervisor) ready(status string) { s.say(daemon.SdNotifyReady + "\nSTATUS=" + status) }

func (s supervisor) stopping() { s.say(daemon.SdNotifyStopping) }

// reloading must carry the time, or systemd takes it for an older protocol. sd_notify(3)
func (s supervisor) reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		s.log.Warn("cannot read monotonic clock", "err", err)
		return
	}
	s.say(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, ts.Nano()/1000))
}

// watchdog returns how often systemd wants a sign of life, or 0.
func (s supervisor) watchdog() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("cannot read watchdog interval", "err", err)
	}
	return d / 2
}

func (s supervisor) alive() { s.say(daemon.SdNotifyWatchdog) }
