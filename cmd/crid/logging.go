package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/crid/crid/internal/config"
)

// newLog makes the log that cfg asks for; cfg was validated.
func newLog(cfg config.Config, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, fmt.Errorf("log_level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}

// adopt makes the libraries' own logs part of ours: containers/image and containers/storage use logrus,
// k8s.io/cri-streaming klog.
func adopt(log *slog.Logger) {
	slog.SetDefault(log)
	klog.SetSlogLogger(slog.New(detail{log.Handler()}))
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(bridge{log})
}

// detail makes everything detail: what is an error to the streaming protocols, such as a client that hangs up or a
// command that does not exist, is none to crid.
type detail struct{ slog.Handler }

// Enabled implements slog.Handler.
func (d detail) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (d detail) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (d detail) WithAttrs(attrs []slog.Attr) slog.Handler { return detail{d.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (d detail) WithGroup(name string) slog.Handler { return detail{d.Handler.WithGroup(name)} }

// bridge hands what is logged by logrus to slog. What is information to a library is detail to crid.
type bridge struct{ log *slog.Logger }

// Levels implements logrus.Hook.
func (bridge) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (b bridge) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for key, value := range e.Data {
		attrs = append(attrs, key, value)
	}
	b.log.Log(e.Context, level, e.Message, attrs...)
	return nil
}
