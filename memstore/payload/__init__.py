"""Turns payloads into bytes and bytes into payloads. It knows no database."""
