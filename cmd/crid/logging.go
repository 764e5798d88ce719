package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"

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

// adopt makes the libraries' own logs part of ours: containers/image and containers/storage use logrus.
func adopt(log *slog.Logger) {
	slog.SetDefault(log)
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(bridge{log})
}

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
