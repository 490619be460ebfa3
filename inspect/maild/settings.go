package maild

import (
	"errors"
	"time"

	"mailweir/inspect/unpack"
)

// Settings are what an administrator writes. A Settings that is zero as a whole stands for DefaultSettings.
type Settings struct {
	ScanTimeout         time.Duration `key:"ScanTimeout" default:"30s" min:"1s" max:"1h" doc:"How long the inspection of one message may take; what is not looked into by then is unchecked (timeout) and EngineFailure decides."`
	HeuristicAnalysis   bool          `key:"HeuristicAnalysis" default:"On" doc:"Whether the guesses of engines (categories VirusModification and UnknownVirus) count as threats. Off only notes them."`
	PackerMaxLevel      int           `key:"PackerMaxLevel" default:"8" min:"0" max:"64" doc:"How deep packed programs may be nested. Deeper ones are unchecked (limits); 0 looks into none. This version takes no packed programs apart: engines see them as they are."`
	ArchiveMaxLevel     int           `key:"ArchiveMaxLevel" default:"8" min:"0" max:"64" doc:"How deep archives (zip, tar, gzip, bzip2) may be nested. Deeper ones are unchecked (limits); 0 looks into none. Other products have 0 for transparent traffic and leave archives in mail unopened; here mail is what the traffic is, so the default looks inside."`
	MailMaxLevel        int           `key:"MailMaxLevel" default:"8" min:"0" max:"64" doc:"How deep messages may be attached to messages. Deeper ones are unchecked (limits); 0 looks into none. As with ArchiveMaxLevel the default looks inside."`
	ContainerMaxLevel   int           `key:"ContainerMaxLevel" default:"8" min:"0" max:"64" doc:"How deep containers other than archives and messages may be nested. Deeper ones are unchecked (limits); 0 looks into none. This version takes no such containers apart: engines see them as they are."`
	MaxCompressionRatio int           `key:"MaxCompressionRatio" default:"500" min:"2" max:"1000000" doc:"By which factor a packed object may grow, judged from its second megabyte on. More is unchecked (limits)."`
	MaxSizeToExtract    int64         `key:"MaxSizeToExtract" type:"size" default:"None" none:"yes" doc:"How much may be extracted from the archives of one message, all objects together. More is unchecked (limits). None leaves it to MaxCompressionRatio, SpoolQuota and ScanTimeout."`

	BlockKnownVirus bool `key:"BlockKnownVirus" default:"Yes" doc:"Whether ThreatAction applies to known viruses."`
	BlockSuspicious bool `key:"BlockSuspicious" default:"Yes" doc:"Whether ThreatAction applies to what looks like a virus: VirusModification and UnknownVirus."`
	BlockAdware     bool `key:"BlockAdware" default:"Yes" doc:"Whether ThreatAction applies to adware."`
	BlockDialers    bool `key:"BlockDialers" default:"Yes" doc:"Whether ThreatAction applies to dialers."`
	BlockJokes      bool `key:"BlockJokes" default:"No" doc:"Whether ThreatAction applies to joke programs."`
	BlockRiskware   bool `key:"BlockRiskware" default:"No" doc:"Whether ThreatAction applies to riskware."`
	BlockHacktools  bool `key:"BlockHacktools" default:"No" doc:"Whether ThreatAction applies to hacking tools."`
	BlockUnchecked  bool `key:"BlockUnchecked" default:"No" doc:"Whether a message is refused when something in it was not looked into because a limit was reached, it is encrypted, it is broken, or it can be read in more than one way. No passes it and notes the reason. Engines that do not answer are a matter of EngineFailure."`

	ThreatAction       string `key:"ThreatAction" enum:"Repack|Reject|Discard|TempFail|Pass" default:"Repack" doc:"What is done with a message that holds a threat of a blocked category. Repack delivers it without the harmful parts. Discard tells the sender that all is well and keeps the message in the quarantine only."`
	SpamAction         string `key:"SpamAction" enum:"Reject|Discard|TempFail|Pass" default:"Reject" doc:"What is done with a message that was found to be spam (GTUBE)."`
	EngineFailure      string `key:"EngineFailure" enum:"TempFail|Pass|Reject" default:"TempFail" doc:"What is done with a message that an engine could not look at because it did not answer (unavailable) or not in time (timeout). TempFail makes the sender try again later. Pass delivers it unchecked, and says so in the event."`
	QuarantineRejected bool   `key:"QuarantineRejected" default:"Yes" doc:"Whether a message that is refused for good is kept in the quarantine as well. Repacked and discarded ones always are."`
}

// DefaultSettings returns the defaults of all parameters.
func DefaultSettings() Settings {
	return Settings{
		ScanTimeout: 30 * time.Second, HeuristicAnalysis: true,
		PackerMaxLevel: 8, ArchiveMaxLevel: 8, MailMaxLevel: 8, ContainerMaxLevel: 8, MaxCompressionRatio: 500,
		BlockKnownVirus: true, BlockSuspicious: true, BlockAdware: true, BlockDialers: true,
		ThreatAction: "Repack", SpamAction: "Reject", EngineFailure: "TempFail", QuarantineRejected: true,
	}
}

// withDefaults fills in what has no meaning of its own when it is zero. Levels do: 0 looks into nothing.
func (s Settings) withDefaults() Settings {
	if s == (Settings{}) {
		return DefaultSettings()
	}
	d := DefaultSettings()
	if s.ScanTimeout == 0 {
		s.ScanTimeout = d.ScanTimeout
	}
	if s.MaxCompressionRatio == 0 {
		s.MaxCompressionRatio = d.MaxCompressionRatio
	}
	for _, a := range []struct {
		is  *string
		def string
	}{{&s.ThreatAction, d.ThreatAction}, {&s.SpamAction, d.SpamAction}, {&s.EngineFailure, d.EngineFailure}} {
		if *a.is == "" {
			*a.is = a.def
		}
	}
	return s
}

// Check tells what is wrong with the settings.
func (s *Settings) Check() error {
	_, err := newPolicy(s.withDefaults())
	return err
}

func (s *Settings) limits() unpack.Limits {
	l := unpack.Limits{Ratio: s.MaxCompressionRatio, Total: s.MaxSizeToExtract}
	l.Levels[unpack.Archive] = s.ArchiveMaxLevel
	l.Levels[unpack.Packer] = s.PackerMaxLevel
	l.Levels[unpack.Container] = s.ContainerMaxLevel
	l.Levels[unpack.Mail] = s.MailMaxLevel
	return l
}

var errRatio = errors.New("MaxCompressionRatio must be at least 2")
