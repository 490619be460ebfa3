package main

import (
	"runtime"
	"runtime/debug"

	"mailweir/cmd/internal/control"
)

// release is the version of this source.
const release = "0.1.0"

// version says what was built.
func version() control.Version {
	v := control.Version{Version: release, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && v.Commit != "" {
		v.Commit += "+changes"
	}
	return v
}

type versionCmd struct{}

// Run implements the command.
func (versionCmd) Run(a *app) error {
	v := version()
	if v.Commit == "" {
		v.Commit = "unknown"
	}
	return a.print("mailweir %s\ncommit %s\ngo %s\n", v.Version, v.Commit, v.Go)
}
