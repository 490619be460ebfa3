package main

import (
	"errors"
	"io/fs"
	"path/filepath"

	"mailweir/certs/trust"
	"mailweir/cmd/internal/gateway"
)

type certInstallCmd struct{}

// Run implements the command.
func (certInstallCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	dir := gateway.AuthorityDir(&l.Settings.Root)
	if _, err := openAuthority(dir); err != nil {
		return rootOnly(err)
	}
	return rootOnly(trust.Install(filepath.Join(dir, "ca.pem")))
}

type certUninstallCmd struct{}

// Run implements the command.
func (certUninstallCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	return rootOnly(trust.Uninstall(filepath.Join(gateway.AuthorityDir(&l.Settings.Root), "ca.pem")))
}

func rootOnly(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hinted(err, "only root may change the trust stores of this machine")
	}
	return err
}
