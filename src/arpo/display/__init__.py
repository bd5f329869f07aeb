"""What a person sees in a terminal or a report while a run goes on and afterwards: progress, tables and charts."""
