// Command mailweir is a transparent mail gateway: it diverts mail connections, opens TLS where told to, has every
// message judged, and passes, blocks or repacks it.
//
// This package parses the command line and calls the right thing. What each command does to the running gateway is
// in cmd/internal/control, how a gateway runs in cmd/internal/gateway, the settings in cmd/internal/config.
//
// The exit status is 0 for success, 1 where a command has a "no" to report (scan --fail, doctor, virus-test), and 2 for an error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"

	"github.com/alecthomas/kong"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// cli is the command line.
type cli struct {
	Config string `short:"c" default:"/etc/mailweir/mailweir.ini" placeholder:"FILE" help:"Configuration file (${default})."`

	Run         runCmd         `cmd:"" help:"Run the gateway in the foreground."`
	Cfset       cfsetCmd       `cmd:"" help:"Write a setting and apply it live."`
	Cfshow      cfshowCmd      `cmd:"" help:"Show settings."`
	Reload      reloadCmd      `cmd:"" help:"Make the running gateway read its configuration again."`
	Stat        statCmd        `cmd:"" help:"Show how the running gateway does."`
	Events      eventsCmd      `cmd:"" help:"Show what happened to mail."`
	Doctor      doctorCmd      `cmd:"" help:"Check this machine and the settings."`
	Version     versionCmd     `cmd:"" help:"Show the version."`
	Certificate certificateCmd `cmd:"" help:"Print the authority's certificate, or put it into this machine's trust stores."`
	Divert      divertCmd      `cmd:"" help:"Show the firewall rules, or remove them."`
	Scan        scanCmd        `cmd:"" help:"Judge files with the configured engines."`
	Quarantine  quarantineCmd  `cmd:"" help:"List, show, export or delete what is in quarantine."`
	VirusTest   virusTestCmd   `cmd:"" help:"Send a harmless test virus."`
}

// app is what every command is given.
type app struct {
	ctx            context.Context
	config         string
	stdout, stderr io.Writer
}

// load reads the configuration.
func (a *app) load() (*config.Loaded, error) {
	l, err := config.Load(a.config)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hinted(fmt.Errorf("configuration file %s does not exist", a.config),
			"name another one by --config, or make it by mailweir cfset")
	}
	return l, err
}

// gateway loads the configuration and returns the client of the gateway that runs with it.
func (a *app) gateway() (control.Client, *config.Loaded, error) {
	l, err := a.load()
	if err != nil {
		return control.Client{}, nil, err
	}
	return control.Client{Path: l.Settings.Root.ControlSocket}, l, nil
}

// run carries out a command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	ended := -1
	parser, err := kong.New(&c,
		kong.Name("mailweir"),
		kong.Description("mailweir is a transparent mail gateway. Settings are described in the reference manual and by cfshow --ini."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { ended = code; panic(exited{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		panic(err) // a wrong tag in cli
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{ctx: ctx, stdout: stdout, stderr: stderr}
	parsed, err := parse(parser, args)
	if ended >= 0 {
		return ended // help was asked for
	}
	if err != nil {
		return a.fail(usage(err))
	}
	a.config = c.Config
	if err := parsed.Run(a); err != nil {
		return a.fail(err)
	}
	return 0
}

// exited unwinds the parser when it has printed what was asked for.
type exited struct{}

func parse(p *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exited); !ok {
				panic(r)
			}
		}
	}()
	return p.Parse(lowered(args))
}

// lowered makes the names of long options lower case: --Value is --value.
func lowered(args []string) []string {
	out := append([]string(nil), args...)
	for i, arg := range out {
		if arg == "--" {
			break
		}
		if strings.HasPrefix(arg, "--") {
			name, value, ok := strings.Cut(arg, "=")
			out[i] = strings.ToLower(name)
			if ok {
				out[i] += "=" + value
			}
		}
	}
	return out
}
