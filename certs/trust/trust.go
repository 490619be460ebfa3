// Package trust puts the gateway's authority into this machine's trust stores, and takes it out again: the system's own,
// those of Firefox and Thunderbird, and Java's.
//
// It is for the command line, run by root; the daemon never calls it. The work is done by smallstep/truststore, which
// runs the system's tools (update-ca-certificates and the like, certutil, keytool). A store that is not there is no
// error; a system store that cannot be changed is. Both functions may be repeated.
package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"github.com/smallstep/truststore"
)

// Install puts the certificate in the PEM file into the stores.
func Install(pemPath string) error {
	return each(pemPath, "install certificate", truststore.InstallFile)
}

// Uninstall takes the certificate in the PEM file out of the stores.
func Uninstall(pemPath string) error {
	return each(pemPath, "uninstall certificate", truststore.UninstallFile)
}

// each applies do to every store.
func each(pemPath, what string, do func(string, ...truststore.Option) error) error {
	if err := check(pemPath); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := do(pemPath, truststore.WithJava()); err != nil {
		return fmt.Errorf("%s: system store: %w", what, err)
	}
	// The library looks for browsers' stores under one pattern, below $HOME: that is root's, and Firefox only. The stores
	// that matter are those of whoever called sudo, and a mail program's.
	keep := truststore.NSSProfile
	defer func() { truststore.NSSProfile = keep }()
	var errs []error
	for _, pattern := range profiles() {
		if found, _ := filepath.Glob(filepath.Join(pattern, "cert[89].db")); len(found) == 0 {
			continue
		}
		truststore.NSSProfile = pattern
		if err := do(pemPath, truststore.WithFirefox(), truststore.WithNoSystem()); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", what, pattern, err))
		}
	}
	return errors.Join(errs...)
}

// check refuses what would fail half-way, or would make the machine trust something that is no authority.
func check(pemPath string) error {
	c, err := truststore.ReadCertificate(pemPath)
	if err != nil {
		return fmt.Errorf("read %s: %w", pemPath, err)
	}
	if !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%s is not the certificate of an authority", pemPath)
	}
	if os.Geteuid() != 0 {
		return errors.New("the system's trust store belongs to root: run this as root (sudo)")
	}
	return nil
}

// profiles lists where Firefox and Thunderbird keep their stores, for root and for whoever called sudo.
func profiles() []string {
	homes := []string{os.Getenv("HOME")}
	if name := os.Getenv("SUDO_USER"); name != "" && name != "root" {
		if u, err := user.Lookup(name); err == nil {
			homes = append(homes, u.HomeDir)
		}
	}
	var patterns []string
	for _, h := range homes {
		if h == "" {
			continue
		}
		for _, p := range [...]string{".mozilla/firefox/*", ".thunderbird/*", "snap/firefox/common/.mozilla/firefox/*",
			"snap/thunderbird/common/.thunderbird/*", ".var/app/org.mozilla.firefox/.mozilla/firefox/*",
			".var/app/org.mozilla.Thunderbird/.thunderbird/*", ".pki/nssdb"} {
			patterns = append(patterns, filepath.Join(h, p))
		}
	}
	return patterns
}
