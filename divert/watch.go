package divert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	settleTime  = 50 * time.Millisecond  // others change rules in bursts
	recheckTime = time.Minute            // what no notification tells
	drainPoll   = 200 * time.Millisecond // how often a stopping divert looks for its last connections
	flapTimes   = 3                      // so many repairs within flapTime: somebody else works against us
	flapTime    = time.Minute
)

// events is a netlink socket that tells of changes.
type events struct{ f *os.File }

// subscribe opens a netlink socket on the groups (numbers, not bits).
func subscribe(protocol int, groups ...int) (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind netlink: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	return &events{os.NewFile(uintptr(fd), "netlink")}, nil
}

// wait returns when something has changed. What exactly is not asked: the whole state is compared.
func (e *events) wait() error {
	buf := make([]byte, 1<<16)
	_, err := e.f.Read(buf)
	if errors.Is(err, unix.ENOBUFS) {
		return nil // more changes than we could be told of
	}
	return err
}

// settle swallows what comes within settleTime.
func (e *events) settle() {
	deadline := time.Now().Add(settleTime)
	if e.f.SetReadDeadline(deadline) != nil {
		return
	}
	for time.Now().Before(deadline) {
		if e.wait() != nil {
			break
		}
	}
	_ = e.f.SetReadDeadline(time.Time{})
}

func (e *events) close() error { return e.f.Close() }

// watch repairs what others have removed (C1-34), until ctx ends. It starts a goroutine for each source of events;
// they end before it does.
func (d *Divert) watch(ctx context.Context, sources ...*events) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1)
	done := make(chan struct{}, len(sources))
	for _, e := range sources {
		go func() {
			defer func() { done <- struct{}{} }()
			for e.wait() == nil {
				e.settle()
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}()
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	last := time.Now()
	var repairs []time.Time
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-changed:
			repairs = d.repair(repairs)
		case now := <-tick.C:
			if d.drainStep() {
				cancel()
			}
			if now.Sub(last) >= recheckTime {
				last = now
				repairs = d.repair(repairs)
			}
		}
	}
	for _, e := range sources {
		_ = e.close()
	}
	for range sources {
		<-done
	}
}

// repair puts back what is missing and tells of it. Somebody who removes our rules again and again gets us to say so,
// not to give up.
func (d *Divert) repair(before []time.Time) []time.Time {
	what, err := d.verify()
	if err != nil {
		d.config.Log.Error("divert rules could not be put back", "err", err)
		d.event("divert-broken", err.Error())
		return before
	}
	if what == "" {
		return before
	}
	now := time.Now()
	d.repaired.Add(1)
	d.config.Log.Warn("divert rules were removed by another program and are put back", "what", what)
	d.event("divert-repaired", what)
	recent := []time.Time{now}
	for _, t := range before {
		if now.Sub(t) < flapTime {
			recent = append(recent, t)
		}
	}
	if len(recent) >= flapTimes {
		text := fmt.Sprintf("%s removed %d times within %v: another program works against the gateway; see mailweir doctor", what, len(recent), flapTime)
		d.config.Log.Error("divert rules flap", "what", text)
		d.event("divert-flapping", text)
	}
	return recent
}
